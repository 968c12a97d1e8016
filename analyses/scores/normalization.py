"""How answers are made comparable before they are matched: the rules of the benchmarks' own evaluation scripts."""

from __future__ import annotations

import re
import string

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"} | {
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")

# The table of the VQA evaluation, slips and all ("somebody'd"), since published scores depend on it. Its keys with a
# capital I are left out: they are looked up in lower case and never found.
_CONTRACTIONS = dict(
    re.findall(
        r"(\S+)>(\S+)",
        """
    aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've couldnt've>couldn't've
    didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've hasnt>hasn't
    havent>haven't hed>he'd hed've>he'd've he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's isnt>isn't
    itd>it'd itd've>it'd've it'dve>it'd've itll>it'll maam>ma'am mightnt>mightn't mightnt've>mightn't've
    mightn'tve>mightn't've mightve>might've mustnt>mustn't mustve>must've neednt>needn't notve>not've oclock>o'clock
    oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't shed've>she'd've
    she'dve>she'd've shouldve>should've shouldnt>shouldn't shouldnt've>shouldn't've shouldn'tve>shouldn't've
    somebody'd>somebodyd somebodyd've>somebody'd've somebody'dve>somebody'd've somebodyll>somebody'll
    somebodys>somebody's someoned>someone'd someoned've>someone'd've someone'dve>someone'd've someonell>someone'll
    someones>someone's somethingd>something'd somethingd've>something'd've something'dve>something'd've
    somethingll>something'll thats>that's thered>there'd thered've>there'd've there'dve>there'd've therere>there're
    theres>there's theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've
    twas>'twas wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're
    whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd
    whod've>who'd've who'dve>who'd've wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's
    wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all
    yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've y'all'dve>y'all'd've youd>you'd
    youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've
    """,
    )
)


def evalai_answer(answer: str) -> str:
    """An answer as EvalAI's processor for VQA and TextVQA leaves it.

    Lower case; commas and question marks dropped and "'s" cut off; other punctuation dropped where a space is beside
    it (or a number has a thousands comma), else turned into a space; periods kept before digits only; number words up
    to ten as digits; articles dropped; contractions without their apostrophe given it back.

    Source: the VQA evaluation (Antol et al., ICCV 2015, `vqaEval.py`) in the form of MMF's `EvalAIAnswerProcessor`.

    >>> evalai_answer("The two dogs."), evalai_answer("1,000"), evalai_answer("dont walk"), evalai_answer("top-left")
    ('2 dogs', '1000', "don't walk", 'top left')
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Each sign is looked for in the text as it was, and dropped or spaced out everywhere at once."""
    rest = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        rest = rest.replace(sign, "" if beside_space or _THOUSANDS.search(text) else " ")
    return _PERIOD.sub("", rest)


def plain_answer(answer: str) -> str:
    """Lower case, no ASCII punctuation, single spaces.

    >>> plain_answer(" Light-Blue. ")
    'lightblue'
    """
    return " ".join(answer.lower().translate(str.maketrans("", "", string.punctuation)).split())


def spaced_answer(answer: str) -> str:
    """Lower case and single spaces, punctuation as it stands.

    >>> spaced_answer(" The  U.S. ")
    'the u.s.'
    """
    return " ".join(answer.lower().split())

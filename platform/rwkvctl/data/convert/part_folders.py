"""Folders that say what a file is for: train, val, test, under their usual spellings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.splits import PARTS, Split, fixed, grouped_split

SPELLINGS = {
    "train": r"tr(?:n|ain|aining|ainings|ainval)?|lern|entrenamiento|entrenar|treinamento|treino|apprentissage"
    r"|entra[iî]nement|addestramento|treningow[ya]|trening|ucz[ąa]c[ya]|e[gğ]itim|latih|обучение|обучающ\w+|обуч"
    r"|тренировочн\w+|тренировка|трейн|навчання",
    "val": r"val|valid|validate|validation|validierung|validierungs|dev|validaci[oó]n|valida[cç][aã]o|validazione"
    r"|walidacja|walidacyjn[ya]|do[gğ]rulama|валидация|валидационн\w+|проверка|проверочн\w+|вал|перевірка",
    "test": r"ts|tst|test|testing|prueba|pruebas|teste|testowy|testowa|uji|тест|тестов\w+|тестирование|тестування",
}
"""Expressions for the words that say a part, by themselves or before what they are of: `Testdaten`, `TrainDataset`."""
_OF_WHAT = "s?(?:set|sets|data|dataset|daten|datensatz|satz|menge|bilder|images?|imgs?|masks?|split|part|phase)?"
_WORDS = {part: re.compile(f"(?:{own}){_OF_WHAT}") for part, own in SPELLINGS.items()}
_SIGNS = {
    "train": re.compile("训练|訓練|学習|學習|훈련|학습|تدريب|प्रशिक्षण|ฝึก"),
    "val": re.compile("验证|驗證|検証|校验|검증|تحقق"),
    "test": re.compile("测试|測試|テスト|試験|테스트|시험|اختبار|परीक्षण|ทดสอบ"),
}
"""Words of languages that put no space between words."""


def part_of(text: str) -> str | None:
    """`Train`, `training_set`, `imagesTr`, `train_val`, `訓練` -> `train`; None for what says no part, or several."""
    plain = unicodedata.normalize("NFC", text)
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", plain).lower())
    words += re.findall(r"[^\W\d_]+", plain.lower())
    found = {part for part, own in _WORDS.items() if any(map(own.fullmatch, words))}
    found |= {part for part, own in _SIGNS.items() if own.search(plain)}
    if found == {"train", "val"}:  # of which validation is yet to be taken
        return "train"
    return found.pop() if len(found) == 1 else None


def by_folder(paths: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """id -> part, and at which depth of the paths (id -> path) the folder stands that tells it.

    UserError when at no depth the folders of all paths tell parts, train among them.
    """
    folders = {key: path.split("/")[:-1] for key, path in paths.items()}
    for depth in range(min(map(len, folders.values()), default=0)):
        found = {key: part_of(own[depth]) for key, own in folders.items()}
        if None not in found.values() and {"train"} < set(found.values()):
            return {key: str(part) for key, part in found.items()}, depth
    names = sorted({name for own in folders.values() for name in own})
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none"
    raise UserError(
        f"--split-from folders: no folder of the images tells {', '.join(PARTS)} (found: {shown}); call them so, or "
        "put {split} for that part of --images"
    )


def are_parts(paths: Iterable[str]) -> bool:
    """Whether folders of these paths tell training from the other parts."""
    try:
        by_folder({path: path for path in paths})
    except UserError:
        return False
    return True


def by_value(values: Mapping[str, str], what: str = "--split-from folders: {split} in --images") -> dict[str, str]:
    """id -> part, of what `{split}` is in the name of each image, or what else says it."""
    found = {key: part_of(value) for key, value in values.items()}
    unknown = sorted({values[key] for key, part in found.items() if part is None})
    if unknown:
        raise UserError(f"{what} is {unknown[0]!r}, which is none of {', '.join(PARTS)}; rename it")
    if "train" not in found.values():
        raise UserError(f"{what} is nowhere train, but {', '.join(sorted(set(values.values())))}")
    return {key: str(part) for key, part in found.items()}


def by_expression(paths: Mapping[str, str], pattern: str) -> dict[str, str]:
    """id -> part, of what the first group of a regular expression is in each path."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--split-from {pattern!r}: is not a regular expression ({error})") from error
    found = {key: match for key, path in paths.items() if (match := compiled.search(path))}
    missing = sorted(paths[key] for key in paths.keys() - found.keys())
    if missing:
        raise UserError(f"--split-from {pattern!r}: does not match {len(missing)} images, for example {missing[0]}")
    return by_value({key: match[1] for key, match in found.items()}, f"--split-from {pattern!r}: its group")


def published(
    ids: Mapping[str, Sequence[str]], groups: Mapping[str, str], seed: int, what: str = "the folders of the source"
) -> Split:
    """The split that the folders are. Without a validation part, a tenth of the training part becomes it, in whole
    groups."""
    if ids.get("val"):
        return fixed(f"as {what}", **{part: ids.get(part, ()) for part in PARTS})
    own = grouped_split(ids["train"], groups, (9, 1, 0), seed)
    test = list(ids.get("test", ()))
    return Split(f"as {what}; val out of train: {own.rule}", {**own.ids, "test": test}, seed)

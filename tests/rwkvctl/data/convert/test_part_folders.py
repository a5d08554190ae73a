from __future__ import annotations

import unicodedata

import pytest

from rwkvctl.data.convert.part_folders import part_of

SPELLED = {
    "train": "train trainval train_val Train TRAINING training_set TrainDataset imagesTr train_images Trainingsdaten"
    " Trainingsbilder"
    " Entrenamiento apprentissage entraînement addestramento treino обучение обучающая 训练 训练集 訓練 学習用 훈련",
    "val": "val valid Validation ValDataset images-val Validierung Validierungsdaten validación validacion validação"
    " validazione валидация 验证 驗證集 検証",
    "test": "test TEST testing_set TestDataset imagesTs Testdaten prueba pruebas teste тест 测试 測試集 テスト 테스트",
}


@pytest.mark.parametrize(("part", "text"), [(part, word) for part, own in SPELLED.items() for word in own.split()])
def test_what_folders_are_called(part: str, text: str):
    assert part_of(text) == part
    assert part_of(unicodedata.normalize("NFD", text)) == part, "as macOS spells it"


@pytest.mark.parametrize(
    "text",
    ["testis", "trainer", "latest", "contest", "train and test", "masks", "Bilder", "valve", "tests 2 trains", ""],
)
def test_what_is_no_part(text: str):
    assert part_of(text) is None

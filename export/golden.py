"""Thirty-two sentences whose answers travel with every version, so that anybody can check a running model against them.

They are ours (rows of a dataset must not leave it), and they exercise what a text can be: plain, sarcastic, misspelt,
full of slang, jamo, emoji, links, markup, other scripts, a single letter, longer than any max_length.
"""

import numpy as np
from tokenizers import Tokenizer

from export.manifest import GoldenRow
from export.onnx_model import OnnxModel

SENTENCES = (
    "다시 보고 싶은 영화",
    "정말 재미있게 봤어요. 배우들 연기가 훌륭합니다!",
    "돈이 아깝다. 두 시간 동안 졸았음",
    "기대 안 했는데 생각보다 좋았다",
    "기대했는데 생각보다 별로였다",
    "안 좋다",
    "좋다",
    "나쁘지 않다",
    "재미가 없지는 않은데 두 번은 못 보겠다",
    "이걸 영화라고 만들었냐 ㅋㅋㅋㅋㅋㅋㅋㅋ",
    "ㅋㅋㅋㅋㅋ 배꼽 빠지는 줄 ㅋㅋ 강추!!",
    "ㅠㅠㅠㅠ 마지막 장면에서 펑펑 울었어요ㅠㅠ",
    "와 진짜 대단하다. 이런 망작은 처음이야",
    "감독님 덕분에 꿀잠 잤습니다. 감사합니다^^",
    "연기 굿 스토리 굿 음악 굿굿",
    "노잼 핵노잼 시간낭비",
    "존잼이에요 친구들이랑 또 볼거임",
    "잼있는데 결말이 좀 아쉽네여...",
    "별 다섯개도 모자라요 ★★★★★",
    "별 하나도 아까움 ☆",
    "그냥 그래요. 시간 때우기용",
    "배송이 사흘이나 늦었는데 상자까지 찌그러져 왔어요",
    "사장님이 친절하시고 국물이 진해서 또 가려고요 😊👍",
    "앱이 켜지자마자 꺼집니다. 업데이트 좀 제대로 하세요 😡",
    "<b>최고</b>의 작품&nbsp;입니다<br>꼭 보세요",
    "예고편이 전부임 https://example.com/trailer?id=1 보지 마세요",
    "A masterpiece, 두말할 필요 없음 10/10",
    "So boring... 하품만 나옴",
    "음악은 좋았지만 이야기는 엉망이었고 그래도 배우 때문에 끝까지 봤다",
    "ㄹㅇ 개꿀잼 인정?? 어 인정~",
    "헐",
    "처음부터 끝까지 눈을 뗄 수 없었다. 장면마다 숨은 뜻이 있고 볼 때마다 새롭다. " * 40,
)


def golden_rows(tokenizer: Tokenizer, model: OnnxModel, pad_token_id: int) -> list[GoldenRow]:
    """The sentences with the ids and the probabilities that the written files give them."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(SENTENCES))]
    answers = model.probabilities(encoded, pad_token_id)
    return [
        GoldenRow(text=text, input_ids=ids, probabilities=[round(float(share), 6) for share in row])
        for text, ids, row in zip(SENTENCES, encoded, answers, strict=True)
    ]


def largest_shift(rows: list[GoldenRow], model: OnnxModel, pad_token_id: int) -> float:
    """How far the model's answers lie from the rows, as a probability."""
    answers = model.probabilities([row.input_ids for row in rows], pad_token_id)
    return float(np.abs(answers - np.array([row.probabilities for row in rows])).max())

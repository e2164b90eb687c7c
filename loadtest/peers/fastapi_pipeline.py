"""What most teams ship: FastAPI and ``transformers.pipeline`` in one process. Run by its path, not as a module.

python loadtest/peers/fastapi_pipeline.py --checkpoint folder --port 9000 --threads 2
"""

import argparse

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Review(BaseModel):
    text: str


def application(checkpoint: str) -> FastAPI:
    classify = pipeline("text-classification", model=checkpoint, device="cpu")
    app = FastAPI()

    @app.post("/predict")
    def predict(review: Review) -> dict:
        return classify(review.text, truncation=True, max_length=128)[0]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    uvicorn.run(application(options.checkpoint), host="127.0.0.1", port=options.port, log_level="warning")

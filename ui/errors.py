"""What can go wrong between the page and the gateway, one class per thing a person can act on.

GatewayError                 `code` is the problem's of RFC 9457 where the gateway answered
  GatewayAway                nobody answers, or not in time: wait, or start it
  Busy                       429, 503 or 504: `retry_after` seconds from now it may be different
  NotAllowed                 401 or 403: a key is missing or wrong
  TextRefused                413 or 422: `row` is the text that is meant, where there are several
  Failed                     anything else: its sentence and request id are for whoever runs the gateway
"""


class GatewayError(Exception):
    def __init__(self, detail: str, *, code: str = "", request_id: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.request_id = request_id


class GatewayAway(GatewayError):
    pass


class Busy(GatewayError):
    def __init__(self, detail: str, *, retry_after: float, code: str = "", request_id: str = "") -> None:
        super().__init__(detail, code=code, request_id=request_id)
        self.retry_after = retry_after


class NotAllowed(GatewayError):
    pass


class TextRefused(GatewayError):
    def __init__(self, detail: str, *, row: int | None = None, code: str = "", request_id: str = "") -> None:
        super().__init__(detail, code=code, request_id=request_id)
        self.row = row


class Failed(GatewayError):
    pass

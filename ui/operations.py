"""What an admin may do to the models: promote, roll back, start and end a trial; a part of 모델.

The controls come with the admin's key, which the gateway checks again at every step, and each is confirmed. The key
stays in the memory of this visit. The gateway runs the project's own command and says what it said.
"""

import logging
import re
from typing import Any

import gradio as gr

from ui.errors import Failed, GatewayError, NotAllowed
from ui.page import EVENT, Page, explain, notice

POLL_SECONDS = 1.0
SHARES = (0.05, 0.2, 0.5, 1.0)  # of the requests, for a trial
KEY = re.compile("[!-~]+")  # what a header can carry

log = logging.getLogger(__name__)

WORDS = {
    "title": ("모델 운영", "Operations"),
    "about": (
        "모델을 올리고 되돌리려면 관리자 키(NUNCHI_ADMIN_KEY)가 필요해요.",
        "Promoting and rolling back models needs the admin key (NUNCHI_ADMIN_KEY).",
    ),
    "key": ("관리자 키", "Admin key"),
    "open": ("열기", "Open"),
    "lock": ("다시 잠그기", "Lock again"),
    "no_key": ("관리자 키를 적어 주세요.", "Write the admin key first."),
    "odd_key": (
        "관리자 키는 빈칸 없는 영문자, 숫자, 기호로만 되어 있어요. 다시 확인해 주세요.",
        "An admin key is made of ASCII letters, digits and signs, without spaces. Check it.",
    ),
    "mode": ("시험 방식", "Kind of trial"),
    "shadow": ("그림자 (답하지 않고 따라 읽기만)", "shadow (reads along, does not answer)"),
    "canary": ("카나리아 (요청의 일부에 실제로 답하기)", "canary (answers a part of the requests)"),
    "share": ("요청 가운데 몫", "Share of the requests"),
    "candidate-start": ("후보 띄우기", "Start the candidate"),
    "candidate-end": ("후보 내리기", "End the trial"),
    "promote": ("후보를 올리기", "Promote the candidate"),
    "rollback": ("이전 버전으로 되돌리기", "Roll back"),
    "confirm-candidate-start": (
        "레지스트리의 후보를 내보내서 띄워요. 방식: {mode}, 요청의 {share:.0%}. 몇 분 걸릴 수 있어요. 진행할까요?",
        "The registry's candidate is exported and started: {mode}, {share:.0%} of the requests. This may take "
        "minutes. Go on?",
    ),
    "confirm-candidate-end": (
        "후보(버전 {candidate})의 시험을 끝내요. 지금 답하는 버전({live})은 그대로 답해요. 진행할까요?",
        "The trial of candidate {candidate} ends. Version {live} answers as before. Go on?",
    ),
    "confirm-promote": (
        "버전 {live} 대신 후보(버전 {candidate})에게 모든 요청을 맡겨요. 진행할까요?",
        "Candidate {candidate} will answer all requests instead of version {live}. Go on?",
    ),
    "confirm-rollback": (
        "버전 {live} 대신 이전 버전({previous})에게 모든 요청을 다시 맡겨요. 진행할까요?",
        "The version before, {previous}, will answer all requests again instead of {live}. Go on?",
    ),
    "yes": ("네, 진행할게요", "Yes, go on"),
    "no": ("아니요", "No"),
    "running": ("‘{what}’ 작업을 하고 있어요 ({began} 시작).", "At work: {what} (since {began})."),
    "done": ("‘{what}’ 작업이 끝났어요.", "Done: {what}."),
    "failed": (
        "‘{what}’ 작업이 실패했어요. 아래 기록의 마지막 줄에 까닭이 있어요.",
        "Failed: {what}. The last line of the record below says why.",
    ),
    "busy": (
        "다른 작업을 하고 있어요. 그 작업이 끝난 다음 다시 해 주세요. ({detail})",
        "Another operation is at work. Try again when it has ended. ({detail})",
    ),
    "not_available": (
        "이 게이트웨이가 있는 곳에는 그 명령이 없어요. 명령줄에서 해 주세요. ({detail})",
        "That command is not installed beside this gateway; run it from the command line. ({detail})",
    ),
    "not_found": (
        "게이트웨이가 다시 시작해서 이 작업의 기록이 없어졌어요. 위의 표에서 지금 상태를 확인해 주세요.",
        "The gateway was restarted and has no record of this operation. See in the tables above how things stand.",
    ),
    "record": ("작업 기록", "Record"),
    "history": ("최근 작업", "Latest operations"),
    "column_what": ("작업", "Operation"),
    "column_state": ("상태", "State"),
    "column_began": ("시작 (UTC)", "Began (UTC)"),
    "column_ended": ("끝 (UTC)", "Ended (UTC)"),
    "column_result": ("결과", "Result"),
    "state-running": ("하는 중", "at work"),
    "state-done": ("끝남", "done"),
    "state-failed": ("실패", "failed"),
}
COLUMNS = ("column_what", "column_state", "column_began", "column_ended", "column_result")
WHAT = ("candidate-start", "candidate-end", "promote", "rollback")

Changes = dict[Any, Any]  # new values by component


class Panel:
    """The components of this part, and what happens in them."""

    def __init__(self, page: Page, standing: gr.State) -> None:
        self.page = page
        self.words = page.words.of(WORDS)
        self.standing = standing
        self.key = gr.State("")
        self.asked = gr.State(None)  # what waits for its confirmation: its name and its terms
        self.watched = gr.State(None)  # id of the operation whose record is shown
        self.ended = gr.State(0)  # operations that were seen to end
        gr.Markdown(f"### {self.words('title')}")
        self._lay_out_lock()
        with gr.Column(visible=False, elem_id="operations") as self.controls:
            self._lay_out_controls()
        self.timer = gr.Timer(POLL_SECONDS, active=False)
        self._wire()

    def _lay_out_lock(self) -> None:
        words = self.words
        with gr.Column(elem_id="operations-lock") as self.lock:
            gr.Markdown(words("about"))
            self.typed = gr.Textbox(
                label=words("key"), type="password", max_lines=1, max_length=500, elem_id="operations-key"
            )
            self.open = gr.Button(words("open"), elem_id="operations-open")
        self.status = gr.HTML(elem_id="operations-status")

    def _lay_out_controls(self) -> None:
        words = self.words
        with gr.Row():
            modes = [(words(mode), mode) for mode in ("shadow", "canary")]
            self.mode = gr.Radio(modes, value="shadow", label=words("mode"), elem_id="operations-mode")
            shares = [(f"{share:.0%}", share) for share in SHARES]
            self.share = gr.Radio(shares, value=SHARES[1], label=words("share"), elem_id="operations-share")
        with gr.Row():
            self.buttons = {
                what: gr.Button(words(what), interactive=False, min_width=140, elem_id=f"operations-{what}")
                for what in WHAT
            }
        with gr.Column(visible=False, elem_id="operations-confirm") as self.confirm:
            self.question = gr.HTML(padding=True, elem_id="operations-question")
            with gr.Row():
                self.no = gr.Button(words("no"), elem_id="operations-no")
                self.yes = gr.Button(words("yes"), variant="stop", elem_id="operations-yes")
        self.record = gr.Textbox(
            label=words("record"), lines=4, max_lines=12, interactive=False, visible=False, elem_id="operations-record"
        )
        self.history = gr.Dataframe(
            label=words("history"), headers=[words(column) for column in COLUMNS], datatype="str",
            interactive=False, wrap=True, elem_id="operations-history",
        )  # fmt: skip
        self.relock = gr.Button(words("lock"), size="sm", elem_id="operations-relock")

    def _wire(self) -> None:
        shown = [
            self.key, self.typed, self.lock, self.controls, self.status, self.asked, self.confirm, self.question,
            self.record, self.history, self.watched, self.ended, self.timer, *self.buttons.values(),
        ]  # fmt: skip
        gr.on([self.open.click, self.typed.submit], self.unlock, [self.typed, self.standing], shown, **EVENT)
        self.relock.click(self.locked, None, shown, **EVENT)
        self.standing.change(self.offered, self.standing, list(self.buttons.values()), **EVENT)
        for what, button in self.buttons.items():
            self.ask_on(what, button, shown)
        self.no.click(self.unasked, None, shown, **EVENT)
        self.yes.click(self.begin, [self.asked, self.key], shown, **EVENT)
        self.timer.tick(self.look, [self.watched, self.key, self.ended], shown, **EVENT)

    def ask_on(self, what: str, button: gr.Button, shown: list) -> None:
        def ask(stand: dict[str, str], mode: str, share: float) -> Changes:
            terms = {"mode": mode, "share": share} if what == "candidate-start" else {}
            question = self.words(f"confirm-{what}", **stand, mode=self.words(mode), share=share)
            return {
                self.asked: (what, terms),
                self.question: notice(question, "alert"),
                self.confirm: gr.Column(visible=True),
            }

        button.click(ask, [self.standing, self.mode, self.share], shown, **EVENT)

    async def unlock(self, typed: str, stand: dict[str, str | None] | None) -> Changes:
        """The controls, once the gateway has taken the key."""
        key = typed.strip()
        if not KEY.fullmatch(key):
            return {self.status: notice(self.words("odd_key" if key else "no_key"), "alert")}
        try:
            latest = await self.page.gateway.operations(key)
        except GatewayError as error:
            return {self.status: notice(self._reason(error), "alert")}
        changes = {
            self.key: key,
            self.typed: "",
            self.status: "",
            self.lock: gr.Column(visible=False),
            self.controls: gr.Column(visible=True),
            self.history: [self._row(each) for each in latest],
        }
        running = next((each for each in latest if each["state"] == "running"), None)
        return changes | self.offered(stand) | (self._shown(running) if running else {})

    def locked(self) -> Changes:
        return self.unasked() | {
            self.key: "",
            self.lock: gr.Column(visible=True),
            self.controls: gr.Column(visible=False),
            self.timer: gr.Timer(active=False),
            self.status: "",
        }

    def offered(self, stand: dict[str, str | None] | None) -> Changes:
        """Only what can be done as things stand; the commands check it again."""
        who = stand or dict.fromkeys(("live", "previous", "candidate", "answering"))
        can = {
            "candidate-start": who["live"] is not None and who["candidate"] is None,
            "candidate-end": who["candidate"] is not None,
            "promote": who["answering"] is not None,
            "rollback": who["previous"] is not None,
        }
        return {button: gr.Button(interactive=can[what]) for what, button in self.buttons.items()}

    def unasked(self) -> Changes:
        return {self.asked: None, self.confirm: gr.Column(visible=False)}

    async def begin(self, asked: tuple[str, dict[str, object]] | None, key: str, request: gr.Request) -> Changes:
        if asked is None:  # a second click came before the question was gone
            return {self.confirm: gr.Column(visible=False)}
        what, terms = asked
        try:
            operation = await self.page.gateway.operate(what, key, **terms)
        except GatewayError as error:
            log.warning(
                "%s %s, asked for by visit %s, was refused: %s", what, terms, request.session_hash, error.detail
            )
            return self.unasked() | self._refused(error)
        client = request.client.host if request.client else "unknown"
        log.info(
            "%s %s begins as %s, asked for by visit %s of %s",
            what,
            terms,
            operation["id"],
            request.session_hash,
            client,
        )
        return self.unasked() | self._shown(operation)

    async def look(self, watched: str | None, key: str, ended: int) -> Changes:
        """How the operation is doing; once it has ended, `ended` goes up and nobody looks any more."""
        if watched is None:
            return {self.timer: gr.Timer(active=False)}
        try:
            operation = await self.page.gateway.operation(watched, key)
            latest = await self.page.gateway.operations(key) if operation["state"] != "running" else None
        except GatewayError as error:
            if isinstance(error, NotAllowed | Failed):
                return {self.watched: None, self.timer: gr.Timer(active=False), self.ended: ended + 1} | self._refused(
                    error
                )
            return {self.status: notice(self._reason(error), "alert")}  # it will be back
        changes = self._shown(operation)
        if latest is None:
            return changes
        return changes | {
            self.watched: None,
            self.timer: gr.Timer(active=False),
            self.ended: ended + 1,
            self.history: [self._row(each) for each in latest],
        }

    def _refused(self, error: GatewayError) -> Changes:
        """Whoever has no right to it loses the controls, too."""
        lost = self.locked() if isinstance(error, NotAllowed) else {}
        return lost | {self.status: notice(self._reason(error), "alert")}

    def _reason(self, error: GatewayError) -> str:
        if error.code in ("busy", "not_available", "not_found"):
            return self.words(error.code, detail=error.detail)
        return explain(self.page.words, error)

    def _shown(self, operation: dict[str, Any]) -> Changes:
        sentence = self.words(operation["state"], what=self.words(operation["what"]), began=_time(operation["began"]))
        lines = [*operation["lines"], *filter(None, [operation["result"]])]
        return {
            self.status: notice(sentence, "alert" if operation["state"] == "failed" else "status"),
            self.record: gr.Textbox("\n".join(lines), visible=True),
            self.watched: operation["id"],
            self.timer: gr.Timer(active=operation["state"] == "running"),
        }

    def _row(self, operation: dict[str, Any]) -> list[str]:
        said = operation["result"] or (operation["lines"] or [""])[-1]
        return [
            self.words(operation["what"]),
            self.words(f"state-{operation['state']}"),
            _time(operation["began"]),
            _time(operation["ended"]),
            said,
        ]


def build(page: Page, standing: gr.State) -> gr.State:
    """``standing`` says who is who (`ui.models.stand`). The returned state changes whenever an operation has ended."""
    return Panel(page, standing).ended


def _time(iso: str | None) -> str:
    return iso[:19].replace("T", " ") if iso else ""

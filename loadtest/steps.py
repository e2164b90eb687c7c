"""A step shape for loadtest/locustfile.py: ``locust -f loadtest/locustfile.py,loadtest/steps.py … --steps 1,8,32``.

So many users, one number after the other, for --step-seconds each. With --arrivals the users stand for so many requests
a second each, so the arrival rate goes in steps.
"""

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener
def add_options(parser) -> None:
    parser.add_argument("--steps", default="1,2,4,8,16,32", help="users of each step (default: 1,2,4,8,16,32)")
    parser.add_argument("--step-seconds", type=float, default=10, help="how long each step takes (default: 10)")


class Steps(LoadTestShape):
    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        users = [int(step) for step in options.steps.split(",")]
        step = int(self.get_run_time() // options.step_seconds)
        return (users[step], max(users)) if step < len(users) else None

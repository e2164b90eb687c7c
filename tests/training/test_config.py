"""The YAML of a run: what it may hold, what the command line sets, and the words of every refusal."""

import argparse
import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from training import config as command
from training.config import (
    CONFIGS,
    PATHS,
    POLARITY,
    STARS,
    Choices,
    TrainingConfig,
    UniformRange,
    add_config_arguments,
    as_yaml,
    load_config,
    override,
    parse_config,
    with_absolute_paths,
)
from training.errors import ConfigRefused


def written(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_whole_and_prints_as_itself(path, tmp_path):
    config = load_config(path, [])
    assert load_config(written(tmp_path, as_yaml(config)), []) == config


def test_the_shipped_configs_are_what_their_names_say():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"nano", "kcbert", "kcelectra", "stars", "demo", "loop"}
    configs = {path.stem: load_config(path, []) for path in CONFIGS.glob("*.yaml")}
    assert load_config(None, []) == configs["nano"]
    assert [configs[name].model.encoder for name in ("kcbert", "kcelectra", "stars")] == [
        "kcbert-base", "kcelectra-base", "nano",
    ]  # fmt: skip
    assert configs["stars"].dataset.labels == STARS
    for name in ("demo", "loop"):
        assert configs[name].dataset.kind == "sample" and configs[name].tune.trials <= 3


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path):
    assert load_config(written(tmp_path, ""), []) == TrainingConfig()
    assert load_config(written(tmp_path, "train:\n  # epochs: 3\ntune:\n"), []) == TrainingConfig()


def test_each_value_can_be_set_on_the_command_line_with_its_default(tmp_path):
    defaults = TrainingConfig().model_dump(mode="json")
    empty = written(tmp_path, "")
    for path in PATHS:
        section, key = path.split(".")
        text = json.dumps(defaults[section][key])
        text = text.strip('"')
        assert load_config(empty, [f"--{path}", text]) == TrainingConfig(), path
        assert load_config(empty, [f"--{path}={text}"]) == TrainingConfig(), path


def test_the_command_line_wins_over_the_file(tmp_path):
    path = written(tmp_path, "train: {learning_rate: 1e-4, epochs: 5}\n")
    words = [
        "--train.learning_rate",
        "3e-5",
        "--tune.trials=4",
        "--dataset.kind",
        "files",
        "--dataset.train",
        "a=b.csv",
    ]
    config = load_config(path, [*words, "--dataset.name", "2026", "--dataset.labels", "[아쉬움, 만족]"])
    assert (config.train.learning_rate, config.train.epochs, config.tune.trials) == (3e-5, 5, 4)
    assert (config.dataset.train, config.dataset.name) == (Path("a=b.csv"), "2026")
    assert config.dataset.labels == ["아쉬움", "만족"]


def test_a_range_can_be_added_to_the_space_or_the_space_replaced(tmp_path):
    empty = written(tmp_path, "")
    added = load_config(empty, ["--tune.space.train.warmup", "{low: 1e-3, high: 0.2, log: true}"]).tune.space
    assert added["train.warmup"] == UniformRange(low=1e-3, high=0.2, log=True)
    assert set(added) > {"train.warmup", "train.learning_rate"}
    replaced = load_config(None, ["--tune.space", "{train.epochs: {choices: [1, 2]}}"]).tune.space
    assert replaced == {"train.epochs": Choices(choices=[1, 2])}
    assert load_config(None, ["--tune.space", "{}"]).tune.space == {}


def test_a_trial_is_the_config_with_its_own_values():
    config = load_config(None, [])
    trial = override(config, {"train.learning_rate": 3e-5, "model.unfrozen_layers": 2})
    assert (trial.train.learning_rate, trial.model.unfrozen_layers) == (3e-5, 2)
    assert trial.dataset == config.dataset and config.model.unfrozen_layers is None
    with pytest.raises(ConfigRefused, match=r"train.learning_rate is 3.0: it should be less than or equal to 0.1"):
        override(config, {"train.learning_rate": 3.0})
    with pytest.raises(ConfigRefused, match=r"there is no value train.lr"):
        override(config, {"train.lr": 3e-5})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--train.learning_rate", "5"],
            r"train.learning_rate is 5: it should be less than or equal to 0.1; leave it out for the default",
        ),
        (["--train.learning_rate", ".nan"], r"train.learning_rate is nan"),
        (["--tune.cpus_per_worker", ".inf"], r"tune.cpus_per_worker is inf: it should be a finite number"),
        (["--train.precision", "int8"], r"train.precision is 'int8': it should be 'bf16', 'fp16' or 'fp32'"),
        (["--model.max_length", "long"], r"model.max_length is 'long': it should be a valid integer"),
        (["--train.lerning_rate", "1"], r"there is no value train.lerning_rate; did you mean train.learning_rate\?"),
        (["--model.learning_rate", "1"], r"there is no value model.learning_rate; did you mean train.learning_rate\?"),
        (["--trian.epochs", "1"], r"did you mean train.epochs\?"),
        (["--resum", "x"], r"there is no value resum; there are dataset, model, train, tune"),
        (["--train.epochs"], r"--train.epochs has no value behind it; write --train.epochs VALUE"),
        (["--train.epochs", "--train.seed", "1"], r"--train.epochs has no value behind it"),
        (["epochs"], r"'epochs' belongs to no value; write --section.key value"),
        (["--tune.space", "{a: "], r"--tune.space is '\{a: ', which is no YAML value"),
        (["--dataset.folder="], r"dataset.folder is '': it is empty; name a path, or leave it out"),
        (["--dataset.kind", "files"], r"dataset.kind is files, but dataset.train names none"),
        (["--dataset.kind", "collected"], r"dataset.kind is collected, but dataset.folder names none"),
        (
            ["--dataset.kind", "sample", "--dataset.labels", "[negative, neutral, positive]"],
            r"but the bundled reviews know \['negative', 'positive'\] only",
        ),
        (["--dataset.labels", "[good, bad]"], r"nsmc can be cut into \['negative', 'positive'\] or \['negative', 'neu"),
        (["--dataset.labels", "[a, '1']"], r"'1' is no name for a label; a number would be taken for its index"),
        (["--dataset.labels", "[a, A]"], r"each label is named once"),
        (["--dataset.labels", "[a]"], r"dataset.labels is \['a'\]: .* at least 2 items"),
        (["--dataset.train", "x.tsv"], r"dataset.train is set, but dataset.kind is nsmc, which does not read it"),
        (["--dataset.test_share", "0.3"], r"it belongs to collected, sample, files"),
        (
            ["--dataset.encoding", "klingon"],
            r"dataset.encoding is 'klingon': Python knows no .* utf-8, cp949 or utf-16",
        ),
        (
            ["--dataset.kind", "files", "--dataset.train", "x.tsv", "--dataset.encoding", "latin-1"],
            r"dataset.encoding is 'latin-1': Python knows no encoding of Korean text by that name",
        ),
        (["--tune.workers_per_trial", "256"], r"batch_size is 128 and cannot be shared by .* 256; take 256"),
        (["--tune.workers_per_trial", "3"], r"cannot be shared by tune.workers_per_trial 3; take 126"),
        (
            ["--train.teachers", "[a, b]", "--train.label_smoothing", "0.05"],
            r"^train.label_smoothing is 0.05, but targets from train.teachers .*; set it to 0, or leave the teachers o",
        ),
        (["--tune.grace_epochs", "9"], r"tune.grace_epochs is 9, but a trial ends after train.epochs 3"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_its_limit_and_a_remedy(words, message):
    with pytest.raises(ConfigRefused, match=message):
        load_config(None, words)


@pytest.mark.parametrize(
    ("path", "varied", "message"),
    [
        ("train.lr", "{choices: [1]}", r"tune.space.train.lr varies a value that does not exist; there are .*"),
        ("dataset.dev_share", "{choices: [0.1]}", r"cannot vary: trials are compared on one dataset; vary model or tr"),
        ("tune.trials", "{choices: [1]}", r"tune.space.tune.trials cannot vary"),
        ("train.teachers", "{choices: [[a], [b]]}", r"cannot vary: all trials learn from the same; run a search for"),
        ("train.batch_size", "{low: 16, high: 32}", r"is a range, but not every number fits there; use choices"),
        (
            "train.warmup",
            "{low: 0.1, high: 3}",
            r"tune.space.train.warmup holds .* refused: train.warmup is 3.0: it sho",
        ),
        ("train.schedule", "{choices: [linear, step]}", r"train.schedule is 'step'"),
        ("train.epochs", "{choices: [4, 0]}", r"train.epochs is 0: it should be greater than or equal to 1"),
        ("train.warmup", "{low: 0.3, high: 0.1}", r"low 0.3 is not below high 0.1"),
        ("train.warmup", "{low: 0, high: 0.1, log: true}", r"low is 0.0; a log range starts above 0"),
        (
            "train.warmup",
            "{low: 0.3}",
            r"tune.space.train.warmup.high is missing; write \{low: …, high: …, log: true\}",
        ),
        ("train.warmup", "{low: 0.1, high: 0.3, lgo: true}", r"tune.space.train.warmup.lgo is unknown; write"),
        ("train.warmup", "0.3", r"tune.space.train.warmup is no range; write"),
        ("train.warmup", "{choices: []}", r"tune.space.train.warmup.choices is \[\]: .* at least 1 item"),
    ],
)
def test_a_space_that_would_make_a_wrong_trial_is_refused(path, varied, message):
    with pytest.raises(ConfigRefused, match=message):
        load_config(None, [f"--tune.space.{path}", varied])


def test_teachers_are_a_list_of_folders_found_again_from_anywhere(tmp_path):
    """And with them label smoothing is 0, in every trial too."""
    text = "train: {teachers: [first, other/second], label_smoothing: 0}"
    config = load_config(written(tmp_path, text), [])
    assert config.train.teachers == [Path("first"), Path("other/second")]
    assert with_absolute_paths(config).train.teachers == [Path.cwd() / "first", Path.cwd() / "other/second"]
    with pytest.raises(
        ConfigRefused, match=r"label_smoothing holds .* refused: train.label_smoothing is 0.1, but targ"
    ):
        load_config(written(tmp_path, text), ["--tune.space.train.label_smoothing", "{low: 0, high: 0.1}"])


def test_a_choice_that_contradicts_another_value_is_refused():
    words = ["--tune.workers_per_trial", "2", "--tune.space.train.batch_size", "{choices: [64, 33]}"]
    with pytest.raises(
        ConfigRefused, match=r"tune.space.train.batch_size .* train.batch_size is 33 and cannot be shared"
    ):
        load_config(None, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", r"run.yaml is no YAML: .* line 1"),
        ("- train", r"run.yaml holds a list; it must hold dataset, model, train, tune"),
        ("train: 3", r"train is 3; it must hold keys"),
        ("train:\n  epochs: 1\n  epochs: 2\n", r"run.yaml is no YAML: epochs stands twice .* line 2"),
        ("tarin:\n  epochs: 1\n", r"there is no value tarin; did you mean train\?"),
        ("train:\n  epochs: 0\n  seed: -1\n", r"train.epochs is 0: .*\ntrain.seed is -1: "),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(ConfigRefused, match=message):
        load_config(written(tmp_path, text), [])


def test_a_missing_file_and_another_encoding_are_refused(tmp_path):
    with pytest.raises(ConfigRefused, match=r"none.yaml cannot be read .* there are training/configs/demo.yaml, "):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "run.yaml").write_bytes("dataset: {name: 영화}".encode("cp949"))
    with pytest.raises(ConfigRefused, match=r"run.yaml is not UTF-8 \(byte 16\)"):
        load_config(tmp_path / "run.yaml", [])


def test_exponents_are_numbers_as_people_write_them(tmp_path):
    space = "tune: {space: {train.learning_rate: {choices: [1e-5, 2E-4]}}}"
    config = load_config(written(tmp_path, f"train: {{learning_rate: 2e-5}}\n{space}\n"), [])
    assert config.train.learning_rate == 2e-5
    assert config.tune.space["train.learning_rate"].choices == [1e-5, 2e-4]


def test_a_config_is_not_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        TrainingConfig().train.epochs = 3


def test_help_lists_every_value_with_its_default_and_its_meaning(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    told = capsys.readouterr().out
    assert all(field.description for field in PATHS.values())
    for path, field in PATHS.items():
        assert f"--{path} [" in told and field.description in told
    assert "--train.learning_rate [0.0002]" in told and "--model.unfrozen_layers [null]" in told


def test_a_command_keeps_its_own_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-on", default="cpu")
    add_config_arguments(parser)
    options, config = parse_config(parser, ["--train.epochs", "7", "--train-on", "gpu", "--model.dropout=0.2"])
    assert (options.train_on, config.train.epochs, config.model.dropout) == ("gpu", 7, 0.2)
    with pytest.raises(ConfigRefused, match=r"there is no value train; "):
        parse_config(parser, ["--train", "gpu"])  # no abbreviation


def test_the_command_prints_the_config_the_schema_or_the_refusal(capsys):
    assert command.main(["--train.seed", "9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["seed"] == 9
    assert command.main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == TrainingConfig.model_fields.keys()
    assert schema["$defs"]["TrainConfig"]["additionalProperties"] is False
    assert command.main(["--train.seed", "-9"]) == 2
    assert capsys.readouterr().err == (
        "error: train.seed is -9: it should be greater than or equal to 0; leave it out for the default\n"
    )


def test_the_labels_of_a_config_are_its_own():
    assert TrainingConfig().dataset.labels == POLARITY and TrainingConfig().dataset.labels is not POLARITY

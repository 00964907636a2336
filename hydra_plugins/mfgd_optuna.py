"""The sweeper that asks Optuna for lots of trials. Hydra finds sweepers here only."""

from typing import Any, Literal

from hydra.core.override_parser.types import Override
from pydantic import BaseModel

from mfgd import schema
from mfgd.database import first_line
from mfgd.passwords import hide_password
from mfgd.search import SearchSweeper
from mfgd.trials import Trials
from mfgd.types import Count, Refused, Seed

SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}


class OptunaKeys(BaseModel):
    """The keys below hydra.sweeper."""

    model_config = schema.STRICT

    objective: str
    direction: Literal["minimize", "maximize"]
    n_trials: Count
    batch: Count
    sampler: Literal["tpe", "gp", "random"]
    seed: Seed | None
    storage: str | None
    study_name: str | None


class OptunaSweeper(SearchSweeper):
    """Asks a study of Optuna's for a lot of trials, runs them together and tells what they gave."""

    def sweep(self, arguments: list[str]) -> None:
        keys = schema.check(OptunaKeys, self.keys, "hydra.sweeper.")
        optuna = import_optuna()
        overrides = self.parse(arguments)
        swept = {key: one for key, one in overrides.items() if one.is_sweep_override()}
        fixed = [str(one.input_line) for key, one in overrides.items() if key not in swept]
        if not swept:
            example = "'lr=tag(log,interval(1e-4,1))' or init=normal,spectral"
            raise Refused(f"hydra/sweeper=optuna: nothing is swept; allowed is {example}")
        study = self._open_study(optuna, keys)
        maximize, most = keys["direction"] == "maximize", keys["n_trials"]
        self.session.search = trials = Trials(keys["objective"], maximize, most)
        while (left := most - self.launched) > 0:
            asked = [study.ask() for _ in range(min(left, keys["batch"]))]
            lot = [
                {key: self._suggest(trial, one) for key, one in swept.items()} for trial in asked
            ]
            jobs = [
                [*fixed, *(f"{key}={text}" for key, text in setting.items())] for setting in lot
            ]
            results = self.launch(jobs)
            for trial, setting, job, result in zip(asked, lot, jobs, results, strict=True):
                told = trials.judge(trial.number, setting, job, result)
                if told.state == "complete":
                    study.tell(trial, told.value)
                else:
                    study.tell(trial, state=optuna.trial.TrialState[told.state.upper()])
            trials.refuse_unknown(results)

    def _open_study(self, optuna: Any, keys: dict[str, Any]) -> Any:
        """The study, which goes on if the storage has it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = getattr(optuna.samplers, SAMPLERS[keys["sampler"]])(seed=keys["seed"])
        storage = keys["storage"]
        try:
            return optuna.create_study(
                storage=self.session.uris.get(storage, storage),
                study_name=keys["study_name"],
                sampler=sampler,
                direction=keys["direction"],
                load_if_exists=True,
            )
        except Exception as error:  # of SQLAlchemy, or of the driver
            said = f"hydra.sweeper.storage={hide_password(storage or '')}"
            raise Refused(f"{said}: {first_line(error)}") from None

    def _suggest(self, trial: Any, override: Override) -> str:
        """The value of a key in a trial, as an override says it.

        Raises:
            Refused: Optuna cannot draw such values.
        """
        key = override.key_or_group
        try:
            if override.is_interval_sweep():
                low, high, is_log, is_whole = self.read_interval(override)
                if is_whole:
                    return str(trial.suggest_int(key, int(low), int(high), log=is_log))
                return repr(float(trial.suggest_float(key, low, high, log=is_log)))
            texts = list(override.sweep_string_iterator())
            if override.is_range_sweep():
                return _suggest_of_range(trial, key, sorted(texts, key=float))
            return str(trial.suggest_categorical(key, texts))
        except ValueError as error:
            raise Refused(f"{override.input_line}: {error}") from None


def _suggest_of_range(trial: Any, key: str, texts: list[str]) -> str:
    """One of several numbers at equal distances, in the order of their size."""
    if len(texts) > 1 and all(text.lstrip("-").isdigit() for text in texts):
        first, second, last = int(texts[0]), int(texts[1]), int(texts[-1])
        return str(trial.suggest_int(key, first, last, step=second - first))
    # By its place, because few multiples of a step are floats.
    return texts[trial.suggest_int(key, 0, len(texts) - 1)]


def import_optuna() -> Any:
    """Optuna, which is imported only if it is chosen.

    Raises:
        Refused: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        how = "install it by pip install 'mfgd[optuna]'"
        raise Refused(f"hydra/sweeper=optuna: needs Optuna; {how}") from None
    return optuna

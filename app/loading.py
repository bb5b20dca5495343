"""The networks of a run, loaded in the background by the first case that needs them."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from app.errors import DeviceError
from app.region import Locator
from app.report import RunRecord, StageClock
from app.sliding_window import Predictor
from app.sources import NetworkSources

logger = logging.getLogger(__name__)


class Networks:
    """Loads each network once, one after another; what is there to say about it goes into the run's record."""

    def __init__(self, sources: NetworkSources, record: RunRecord) -> None:
        self._sources, self._record = sources, record
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-network")
        self._first: Future[tuple[Predictor, Locator | None]] | None = None
        self._twin: Future[Predictor | None] | None = None

    def begin(self) -> None:
        """Starts to load the segmenter and the locator, unless that was done."""
        if self._first is None:
            self._first = self._pool.submit(self._load)

    def begin_twin(self) -> None:
        """Starts to load the twin, unless that was done."""
        if self._twin is None:
            self._twin = self._pool.submit(self._load_twin)

    def drop_twin(self) -> None:
        """Lets the twin go. One that is just being loaded is waited for: its memory is free only then."""
        twin, self._twin = self._twin, None
        if twin and not twin.cancel():
            twin.exception()

    def wait(self) -> tuple[Predictor, Locator | None, Predictor | None]:
        """(segmenter, locator, twin) once they are there; ``begin`` comes first.

        Raises:
            AppError: one of them cannot be loaded.
        """
        assert self._first is not None
        predictor, locator = self._first.result()
        return predictor, locator, self._twin.result() if self._twin else None

    def check(self) -> None:
        """Raises what loading raised, even if no case came as far as using a network."""
        if self._first:
            self.wait()

    def abandon(self) -> None:
        """Makes ``close`` not wait: a network takes seconds to load, an interrupted run ends within one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._first = None

    def close(self) -> None:
        """Waits for the background thread, unless it was abandoned."""
        self._pool.shutdown(wait=self._first is not None)

    def _load(self) -> tuple[Predictor, Locator | None]:
        clock = StageClock()
        with clock.measure("load network"):
            try:
                predictor, warnings = self._sources.segmenter.load()
                locator = self._load_locator()
            except MemoryError as error:
                raise DeviceError("not enough memory to load the network; give the process more") from error
        (self._record.network_load_span,) = clock.spans
        self._record.network_load_s = clock.seconds["load network"]
        self._record.warnings.extend(warnings)
        self._record.network = {
            "backend": predictor.backend,
            "device": predictor.device,
            "precision": predictor.precision,
        }
        ready = (*self._record.network.values(), self._record.network_load_s)
        logger.info("network ready: %s on %s in %s, %.2f s", *ready)
        return predictor, locator

    def _load_locator(self) -> Locator | None:
        source = self._sources.locator
        return Locator(source.plan, source.load()[0]) if source else None

    def _load_twin(self) -> Predictor | None:
        """None if there is not enough memory: no label map is lost for the sake of a twin."""
        assert self._sources.twin is not None
        try:
            predictor, warnings = self._sources.twin.load()
        except MemoryError:
            warning = "not enough memory to load the second network; its agreement is not in the report"
            self._record.warnings.append(warning)
            logger.warning(warning)
            return None
        self._record.warnings.extend(warning for warning in warnings if warning not in self._record.warnings)
        return predictor

"""The networks of a run, loaded in the background by the first case that needs them."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from app.errors import DeviceError
from app.machine_limits import trim_heap
from app.region import Locator
from app.report import RunRecord, Span, StageClock
from app.sliding_window import Predictor
from app.sources import NetworkSource, NetworkSources
from app.volume import Float32Array

logger = logging.getLogger(__name__)


class Awaited:
    """A network that may still be loading: who asks for something of it first waits, in the stage ``load``.

    So a scan is read, its organs are found and it is resampled while the network is set up.

    Raises:
        AppError: by all that is asked of it, if the network could not be loaded.
    """

    def __init__(self, loading: Future[Predictor], clock: StageClock) -> None:
        self._loading, self._clock = loading, clock
        self._predictor: Predictor | None = None

    @property
    def backend(self) -> str:
        """See ``Predictor``."""
        return self._wait().backend

    @property
    def device(self) -> str:
        """See ``Predictor``."""
        return self._wait().device

    @property
    def precision(self) -> str:
        """See ``Predictor``."""
        return self._wait().precision

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        return self._wait().predict(tile)

    def _wait(self) -> Predictor:
        if self._predictor is None:
            with self._clock.measure("load"):
                self._predictor = self._loading.result()
        return self._predictor


class Networks:
    """Loads each network once, one after another in the order of use; what there is to say goes into the record."""

    def __init__(self, sources: NetworkSources, record: RunRecord) -> None:
        self._sources, self._record, self._clock = sources, record, StageClock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-network")
        self._locator: Future[Predictor] | None = None
        self._segmenter: Future[Predictor] | None = None
        self._twin: Future[Predictor | None] | None = None

    def begin(self) -> None:
        """Starts to load the locator and the segmenter, unless that was done."""
        if self._segmenter is None:
            if self._sources.locator:
                self._locator = self._pool.submit(self._load, self._sources.locator)
            self._segmenter = self._pool.submit(self._load_segmenter)

    def begin_twin(self) -> None:
        """Starts to load the twin, unless that was done."""
        if self._twin is None:
            self._twin = self._pool.submit(self._load_twin)

    def drop_twin(self) -> None:
        """Lets the twin go. One that is just being loaded is waited for: its memory is free only then."""
        twin, self._twin = self._twin, None
        if twin and not twin.cancel():
            twin.exception()

    def get(self, clock: StageClock) -> tuple[Predictor, Locator | None, Predictor | None]:
        """(segmenter, locator, twin); ``begin`` comes first. With a twin all are loaded, else they are awaited.

        Raises:
            AppError: with a twin, the segmenter cannot be loaded, or the twin is altered.
        """
        assert self._segmenter is not None
        locator = None
        if self._sources.locator and self._locator:
            locator = Locator(self._sources.locator.plan, Awaited(self._locator, clock))
        if self._twin is None:
            return Awaited(self._segmenter, clock), locator, None
        with clock.measure("load"):
            return self._segmenter.result(), locator, self._twin.result()

    def check(self) -> None:
        """Raises what loading raised, even if no case came as far as using a network."""
        for loading in (self._locator, self._segmenter, self._twin):
            if loading:
                loading.result()

    def abandon(self) -> None:
        """Makes ``close`` not wait: a network takes seconds to load, an interrupted run ends within one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._segmenter = None

    def close(self) -> None:
        """Waits for the network that is being loaded, unless it was abandoned; what has not begun will not."""
        self._pool.shutdown(wait=self._segmenter is not None, cancel_futures=True)

    def _load(self, source: NetworkSource) -> Predictor:
        with self._clock.measure("load network"):
            try:
                predictor, warnings = source.load()
            except MemoryError as error:
                raise DeviceError("not enough memory to load the network; give the process more") from error
            except RuntimeError as error:  # of a runtime, which is not to be taken for one of a window
                raise DeviceError(f"the network cannot be loaded ({error}); choose another --backend") from error
        trim_heap()
        self._warn(warnings)
        return predictor

    def _load_segmenter(self) -> Predictor:
        predictor = self._load(self._sources.segmenter)
        spans = self._clock.spans
        self._record.network_load_span = Span("load network", spans[0].start_unix_s, spans[-1].end_unix_s)
        self._record.network_load_s = self._clock.seconds["load network"]
        self._record.network = {
            "backend": predictor.backend,
            "device": predictor.device,
            "precision": predictor.precision,
        }
        ready = (*self._record.network.values(), self._record.network_load_s)
        logger.info("network ready: %s on %s in %s, %.2f s", *ready)
        return predictor

    def _load_twin(self) -> Predictor | None:
        """None if it cannot be loaded, for lack of memory say: no label map is lost for the sake of a twin."""
        assert self._sources.twin is not None
        try:
            predictor, warnings = self._sources.twin.load()
        except (MemoryError, RuntimeError, DeviceError) as error:
            reason = "not enough memory" if isinstance(error, MemoryError) else str(error)
            warning = f"the second network cannot be loaded ({reason}); its agreement is not in the report"
            self._record.warnings.append(warning)
            logger.warning(warning)
            return None
        trim_heap()
        self._warn(warnings)
        return predictor

    def _warn(self, warnings: tuple[str, ...]) -> None:
        """Each warning once, though every network has it."""
        self._record.warnings.extend(warning for warning in warnings if warning not in self._record.warnings)

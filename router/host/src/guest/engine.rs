//! The WebAssembly engine: how components are compiled, and the clock by which events take turns.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use wasmtime::{
    Config,
    component::{HasSelf, Linker},
};

use super::{State, abi, stacks::Stacks};

/// How long an event runs before others have their turn.
pub(super) const TURN: Duration = Duration::from_millis(2);

/// What a plugin's own calls may take: wasmtime's default.
const WASM_STACK_BYTES: usize = 512 << 10;
/// What is behind them for the host: a rule script that a plugin asks runs there, and the deepest one
/// was tried on 2 MiB.
const HOST_STACK_BYTES: usize = (2 << 20) + (512 << 10);

/// Turns without an event after which the clock stands still: an event that comes sooner need not
/// wake it.
const IDLE_TURNS: u32 = 50;

/// The engine of all plugins. Dropping it ends its clock.
pub(crate) struct Engine {
    engine: wasmtime::Engine,
    /// With what all plugins may import.
    linker: Linker<State>,
    clock: Arc<Clock>,
    thread: Option<JoinHandle<()>>,
}

/// Raises the engine's epoch every [`TURN`], while events run.
#[derive(Default)]
struct Clock {
    running: AtomicUsize,
    stands: AtomicBool,
    is_over: AtomicBool,
}

/// While it lives, an event runs.
pub(crate) struct Running<'a>(&'a Clock);

impl Engine {
    /// # Errors
    /// When this machine cannot run what the compiler makes, or the system has no thread.
    pub(crate) fn new() -> io::Result<Self> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        // The default reservation of 4 GiB for a memory stays: a smaller one needs bounds checks
        // that cost 2.6 times the run time. What a memory really takes, the limiter caps.
        config.wasm_component_model(true);
        // For debuggers of the daemon and for offsets in messages: a seventh of what each start reads and
        // checks. Functions have their names in messages all the same.
        config.native_unwind_info(false);
        config.generate_address_map(false);
        config.max_wasm_stack(WASM_STACK_BYTES);
        config.async_stack_size(WASM_STACK_BYTES + HOST_STACK_BYTES);
        config.with_host_stack(Arc::new(Stacks));
        let engine = wasmtime::Engine::new(&config).map_err(io::Error::other)?;
        let mut linker = Linker::new(&engine);
        abi::Plugin::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)
            .map_err(io::Error::other)?;
        let clock = Arc::new(Clock::default());
        let thread = thread::Builder::new().name("plugin-clock".into()).spawn({
            let (engine, clock) = (engine.clone(), Arc::clone(&clock));
            move || clock.run(&engine)
        })?;
        Ok(Self {
            engine,
            linker,
            clock,
            thread: Some(thread),
        })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// With what all plugins may import.
    pub(super) fn linker(&self) -> Linker<State> {
        self.linker.clone()
    }

    /// The clock goes while this lives.
    pub(crate) fn running(&self) -> Running<'_> {
        self.clock.running.fetch_add(1, Ordering::SeqCst);
        if self.clock.stands.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(&self.clock)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Clock {
    fn run(&self, engine: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            thread::park_timeout(TURN);
            engine.increment_epoch();
            idle = if self.is_idle() { idle + 1 } else { 0 };
            if idle < IDLE_TURNS {
                continue;
            }
            self.stands.store(true, Ordering::SeqCst);
            // Whoever comes from here on sees that it stands.
            while self.is_idle() && !self.is_over.load(Ordering::SeqCst) {
                thread::park();
            }
            self.stands.store(false, Ordering::SeqCst);
        }
    }

    fn is_idle(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.clock.is_over.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It only waits: it cannot have panicked.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

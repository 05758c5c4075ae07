//! Seeds of runs, and how one is repeated.

/// The variable that names the one seed to run.
const SEED_VARIABLE: &str = "WORMHOLES_SEED";

/// Runs a scenario once for each seed from 0 to `n_seeds`, or for the one in `WORMHOLES_SEED`. A
/// failure prints its seed.
///
/// # Errors
/// When the variable holds no number.
pub fn for_seeds(
    n_seeds: u64,
    mut scenario: impl FnMut(u64),
) -> Result<(), std::num::ParseIntError> {
    let mut run = |seed| {
        let _case = PrintOnFailure { seed };
        scenario(seed);
    };
    match std::env::var(SEED_VARIABLE) {
        Ok(seed) => run(seed.parse()?),
        Err(_) => (0..n_seeds).for_each(run),
    }
    Ok(())
}

/// Says which seed failed, when the scenario panics.
struct PrintOnFailure {
    seed: u64,
}

impl Drop for PrintOnFailure {
    #[expect(clippy::print_stderr, reason = "the test runner shows it on failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.seed;
            eprintln!("failed with seed {seed}: repeat with {SEED_VARIABLE}={seed}");
        }
    }
}

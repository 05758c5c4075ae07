//! Memory that a crowd left behind goes back to the system. The allocator of glibc keeps what was
//! freed below something that lives, and gives it back only when it is asked.
//!
//! Unsafe: the call is C's. It takes no pointer and may be made by any thread at any time
//! (malloc_trim(3), MT-Safe).

use std::time::Duration;

/// How long freed memory may stay here. A look at a heap of 100 MiB takes some milliseconds.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);

/// Gives back what is free. Other threads may wait for memory meanwhile.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "see the head of this file")]
    // SAFETY: no argument is a pointer, and the function is safe in any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

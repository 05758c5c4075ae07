//! The stacks that plugins run on, whose pages go back to the system while an instance rests.
//!
//! wasmtime keeps the stack of an instance's last call for the next one, and its pages with it: two of
//! them and more, a fifth of what an idle instance takes. Which stack is whose it does not say; but the
//! first call of an instance that needs one makes it, on the thread that runs the call.
//!
//! `unsafe` is here since a stack is memory that is mapped by hand: a [`Mapping`] is given back when
//! neither wasmtime nor an instance has it any more, and its pages where nobody runs on it.

#![expect(unsafe_code, reason = "stacks are mapped by hand")]

use std::{
    cell::RefCell,
    fmt, io,
    ops::Range,
    pin::pin,
    ptr,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use rustix::{
    mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap},
    param::page_size,
};
use wasmtime::{StackCreator, StackMemory, Store};

thread_local! {
    /// The one that was made last on this thread, until somebody asks for it.
    static MADE: RefCell<Weak<Mapping>> = const { RefCell::new(Weak::new()) };
}

/// Makes them.
pub(super) struct Stacks;

/// An instance's stack. Whoever has it keeps it mapped, and wasmtime does so as well.
#[derive(Clone)]
pub(super) struct Stack(Arc<Mapping>);

/// One page that is never there, so that nobody runs over the end, and the stack above it.
struct Mapping {
    /// As a number: it belongs to no thread.
    address: usize,
    length: usize,
    page: usize,
}

/// Awaits a call, and catches the stack that is made for it, if it needs one and none is there.
pub(super) async fn caught<T>(call: impl Future<Output = T>) -> (T, Option<Stack>) {
    let mut call = pin!(call);
    let mut stack = None;
    let called = std::future::poll_fn(|context: &mut Context<'_>| -> Poll<T> {
        MADE.take();
        let polled = call.as_mut().poll(context);
        stack = stack.take().or_else(|| MADE.take().upgrade().map(Stack));
        polled
    })
    .await;
    (called, stack)
}

impl Stack {
    /// Its pages go back; they are zero when they are used again. `_store` is the one that it was made
    /// for: who has it knows that no call runs, or was stopped in its middle.
    pub(super) fn rest<T>(&self, _store: &mut Store<T>) {
        let Mapping { length, page, .. } = *self.0;
        // SAFETY: the range is this mapping's own. Nobody runs on it, and of a call that is over wasmtime
        // keeps nothing there: it writes the first frame anew for each.
        let rested = unsafe { madvise(self.0.at(page), length - page, Advice::LinuxDontNeed) };
        // It would only be kept.
        let _ = rested;
    }
}

impl Mapping {
    fn new(stack_bytes: usize) -> io::Result<Self> {
        let page = page_size();
        let length = stack_bytes.next_multiple_of(page) + page;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: at an address that the system chooses, it lies over nothing else.
        let address =
            unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags)? };
        let mapping = Self {
            address: address.expose_provenance(),
            length,
            page,
        };
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range is the new mapping's own.
        unsafe { mprotect(mapping.at(page), length - page, access)? };
        // One of them for the top of a stack would be 2 MiB.
        // SAFETY: the same.
        let _ = unsafe { madvise(mapping.at(page), length - page, Advice::LinuxNoHugepage) };
        Ok(mapping)
    }

    fn at(&self, offset: usize) -> *mut std::ffi::c_void {
        ptr::with_exposed_provenance_mut(self.address + offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is this mapping's own, and wasmtime, which alone points into it, has let go of it.
        let unmapped = unsafe { munmap(self.at(0), self.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

// SAFETY: each stack is fresh, page aligned, zero, and has a page below it that cannot be touched.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, _zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let stack = Stack(Arc::new(Mapping::new(size)?));
        MADE.set(Arc::downgrade(&stack.0));
        Ok(Box::new(stack))
    }
}

// SAFETY: the ranges are those of the mapping, which lasts as long as this.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        self.0.at(self.0.length).cast()
    }

    fn range(&self) -> Range<usize> {
        self.0.address + self.0.page..self.0.address + self.0.length
    }

    fn guard_range(&self) -> Range<*mut u8> {
        self.0.at(0).cast()..self.0.at(self.0.page).cast()
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of it that are there.
    fn resident(stack: &Stack) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let Range { start, .. } = stack.range();
        let mut lines = maps
            .lines()
            .skip_while(|line| !line.starts_with(&format!("{start:x}-")));
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let kib = resident
            .trim()
            .trim_end_matches(" kB")
            .parse::<usize>()
            .unwrap();
        kib * 1024 / page_size()
    }

    #[tokio::test]
    async fn a_stack_that_rests_takes_no_memory_and_can_be_used_again() {
        let (made, stack) = caught(async { Stacks.new_stack(1 << 20, true).unwrap() }).await;
        let stack = stack.unwrap();
        assert_eq!(made.range(), stack.range());
        let below_top = || stack.0.at(stack.0.length - 8).cast::<u64>();
        for _ in 0..2 {
            // SAFETY: the last word of the stack, on which nobody runs.
            assert_eq!(unsafe { below_top().read_volatile() }, 0);
            // SAFETY: the same.
            unsafe { below_top().write_volatile(7) };
            assert_eq!(resident(&stack), 1);
            stack.rest(&mut Store::<()>::default());
            assert_eq!(resident(&stack), 0);
        }
        let (_, none) = caught(async {}).await;
        assert!(none.is_none(), "it is caught once");
    }
}

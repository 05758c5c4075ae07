//! A hop's work on a cell allocates nothing: a busy hop peels hundreds of thousands a second.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]
#![expect(unsafe_code, reason = "an allocator that counts")]

#[path = "support/onion_net.rs"]
#[expect(dead_code, reason = "shared with the scenarios")]
mod onion_net;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use onion_net::{OnionNet, honest};
use wormholes_proto::{
    Suite,
    onion::{CellSize, MessageKind},
};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn no_party_allocates_for_a_cell() {
    for suite in Suite::ALL {
        let mut net = OnionNet::new(2, &[suite], 1);
        let mut circuit = net.build(&mut honest).unwrap();
        for size in [CellSize::Small, CellSize::Large] {
            let mut cell = vec![0; size.bytes()];
            let before = ALLOCATIONS.get();
            assert_ne!(before, 0, "the counter counts");
            for _ in 0..10 {
                let (down, up) = &mut circuit.hops[0];
                let (last_down, last_up) = &mut circuit.last;
                circuit
                    .sealer
                    .seal(MessageKind::Data, 9, &mut cell)
                    .unwrap();
                down.peel(&mut cell).unwrap();
                last_down.open(&mut cell).unwrap();
                last_up.seal(MessageKind::Data, 9, &mut cell).unwrap();
                up.wrap(&mut cell).unwrap();
                circuit.opener.open(&mut cell).unwrap();
            }
            assert_eq!(ALLOCATIONS.get(), before);
        }
    }
}

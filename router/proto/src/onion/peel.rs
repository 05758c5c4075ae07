//! A hop's end of a built circuit: one layer off on the way down, one on on the way up. Every hop
//! does the same work on every cell; the last also reads and writes what is inside. Nothing here
//! allocates.

use std::fmt;

use crate::noise::TAG_BYTES;

use super::{
    cell::{CellError, CellSize, Delivered, MessageKind, MessageOrder, frame, unframe},
    schedule::{CellCounter, LayerKeys},
    slots::Slots,
};

/// A circuit as a hop on the way holds it.
#[derive(Debug)]
pub struct HopCircuit {
    down: HopDown,
    up: HopUp,
}

/// A circuit as its last hop holds it.
#[derive(Debug)]
pub struct LastCircuit {
    down: LastDown,
    up: LastUp,
}

/// Peels cells from the client's side.
pub struct HopDown {
    keys: LayerKeys,
    counter: CellCounter,
}

/// Wraps cells from behind.
pub struct HopUp {
    keys: LayerKeys,
    counter: CellCounter,
}

/// Opens the client's messages.
#[derive(Debug)]
pub struct LastDown {
    hop: HopDown,
    order: MessageOrder,
}

/// Makes cells of messages for the client.
#[derive(Debug)]
pub struct LastUp {
    hop: HopUp,
    order: MessageOrder,
}

impl HopCircuit {
    pub(super) fn new((down, up): (LayerKeys, LayerKeys)) -> Self {
        Self {
            down: HopDown {
                keys: down,
                counter: CellCounter::default(),
            },
            up: HopUp {
                keys: up,
                counter: CellCounter::default(),
            },
        }
    }

    /// The two directions, each for itself.
    pub fn split(self) -> (HopDown, HopUp) {
        (self.down, self.up)
    }
}

impl LastCircuit {
    pub(super) fn new(keys: (LayerKeys, LayerKeys)) -> Self {
        let (down, up) = HopCircuit::new(keys).split();
        Self {
            down: LastDown {
                hop: down,
                order: MessageOrder::new(MessageKind::Open),
            },
            up: LastUp {
                hop: up,
                order: MessageOrder::new(MessageKind::Answer),
            },
        }
    }

    /// The two directions, each for itself.
    pub fn split(self) -> (LastDown, LastUp) {
        (self.down, self.up)
    }
}

impl HopDown {
    /// Takes one layer off in place; then the cell is for the next hop.
    ///
    /// # Errors
    /// [`CellError`]: close the circuit, on both sides.
    pub fn peel(&mut self, cell: &mut [u8]) -> Result<(), CellError> {
        let result = self.try_peel(cell);
        self.counter.close_on_error(result)
    }

    fn try_peel(&mut self, cell: &mut [u8]) -> Result<(), CellError> {
        let (size, area, payload) = CellSize::split(cell)?;
        let counter = self.counter.take()?;
        let slots = Slots::from_bytes(area);
        let committed = slots.with_first([0; TAG_BYTES]);
        self.keys
            .open(counter, size, slots.first(), committed, payload)?;
        slots
            .towards_first()
            .xor(self.keys.slot_stream(counter)?)
            .write_to(area);
        Ok(())
    }
}

impl HopUp {
    /// Puts one layer on in place; then the cell is for the hop before.
    ///
    /// # Errors
    /// [`CellError`]: close the circuit, on both sides.
    pub fn wrap(&mut self, cell: &mut [u8]) -> Result<(), CellError> {
        let result = self.try_wrap(cell);
        self.counter.close_on_error(result)
    }

    fn try_wrap(&mut self, cell: &mut [u8]) -> Result<(), CellError> {
        let (size, area, payload) = CellSize::split(cell)?;
        let counter = self.counter.take()?;
        let slots = Slots::from_bytes(area);
        let tag = self.keys.seal(counter, size, slots, payload)?;
        slots
            .xor(self.keys.slot_stream(counter)?)
            .towards_last()
            .with_first(tag)
            .write_to(area);
        Ok(())
    }
}

impl LastDown {
    /// Opens a cell in place and says what is in it.
    ///
    /// # Errors
    /// [`CellError`]: close the circuit.
    pub fn open(&mut self, cell: &mut [u8]) -> Result<Delivered, CellError> {
        let result = self.try_open(cell);
        self.hop.counter.close_on_error(result)
    }

    fn try_open(&mut self, cell: &mut [u8]) -> Result<Delivered, CellError> {
        self.hop.peel(cell)?;
        let (_, _, payload) = CellSize::split(cell)?;
        let delivered = unframe(payload)?;
        self.order.check(delivered.kind)?;
        Ok(delivered)
    }
}

impl LastUp {
    /// Makes a cell of `cell` in place. The caller has put `data_len` bytes of data at
    /// [`DATA_OFFSET`](super::DATA_OFFSET); the cell's length says its size.
    ///
    /// # Errors
    /// [`CellError`]: close the circuit. The length is no cell's, the data do not fit, the message
    /// is out of order, or the circuit broke before.
    pub fn seal(
        &mut self,
        kind: MessageKind,
        data_len: usize,
        cell: &mut [u8],
    ) -> Result<(), CellError> {
        let result = self.try_seal(kind, data_len, cell);
        self.hop.counter.close_on_error(result)
    }

    fn try_seal(
        &mut self,
        kind: MessageKind,
        data_len: usize,
        cell: &mut [u8],
    ) -> Result<(), CellError> {
        let (_, area, payload) = CellSize::split(cell)?;
        self.order.check(kind)?;
        frame(kind, data_len, payload)?;
        Slots::ZERO.write_to(area);
        self.hop.wrap(cell)
    }
}

impl fmt::Debug for HopDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopDown").finish_non_exhaustive()
    }
}

impl fmt::Debug for HopUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopUp").finish_non_exhaustive()
    }
}

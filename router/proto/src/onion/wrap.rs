//! The client's end of a built circuit: all layers on, all layers off.

use std::fmt;

use crate::noise::TAG_BYTES;

use super::{
    build::MAX_HOPS,
    cell::{CellError, CellSize, Delivered, MessageKind, MessageOrder, frame, unframe},
    schedule::{CellCounter, LayerKeys, StreamKey},
    slots::Slots,
};

/// A circuit as its client holds it.
pub struct ClientCircuit {
    sealer: ClientSealer,
    opener: ClientOpener,
}

/// Makes cells for the way down.
pub struct ClientSealer {
    /// First hop first, 1 to [`MAX_HOPS`].
    layers: Vec<LayerKeys>,
    /// Whence the slots come that no hop reads; nobody else has it.
    pad_key: StreamKey,
    counter: CellCounter,
    order: MessageOrder,
}

/// Opens cells that came up.
pub struct ClientOpener {
    /// First hop first, 1 to [`MAX_HOPS`].
    layers: Vec<LayerKeys>,
    counter: CellCounter,
    order: MessageOrder,
}

impl ClientCircuit {
    /// `layers` are (down, up) of each hop, the first hop's first.
    pub(super) fn new(
        layers: Vec<(LayerKeys, LayerKeys)>,
        pad_key: StreamKey,
    ) -> Result<Self, CellError> {
        if layers.is_empty() || layers.len() > MAX_HOPS {
            return Err(CellError);
        }
        let (down, up) = layers.into_iter().unzip();
        Ok(Self {
            sealer: ClientSealer {
                layers: down,
                pad_key,
                counter: CellCounter::default(),
                order: MessageOrder::new(MessageKind::Open),
            },
            opener: ClientOpener {
                layers: up,
                counter: CellCounter::default(),
                order: MessageOrder::new(MessageKind::Answer),
            },
        })
    }

    /// The two directions, each for itself.
    pub fn split(self) -> (ClientSealer, ClientOpener) {
        (self.sealer, self.opener)
    }
}

impl ClientSealer {
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
        self.counter.close_on_error(result)
    }

    fn try_seal(
        &mut self,
        kind: MessageKind,
        data_len: usize,
        cell: &mut [u8],
    ) -> Result<(), CellError> {
        let (size, area, payload) = CellSize::split(cell)?;
        self.order.check(kind)?;
        frame(kind, data_len, payload)?;
        let counter = self.counter.take()?;
        let streams = streams(&self.layers, counter)?;

        let mut slots = self.slots_at_last_hop(counter, &streams)?;
        for (hop, layer) in self.layers.iter().enumerate().rev() {
            let tag = layer.seal(counter, size, slots, payload)?;
            slots = slots.with_first(tag);
            // As the hop before gets them: what it shifts out of nothing is zero again here.
            if let Some(stream) = hop.checked_sub(1).and_then(|before| streams.get(before)) {
                slots = slots.xor(*stream).towards_last();
            }
        }
        slots.write_to(area);
        Ok(())
    }

    /// Slots 1..7 as the last hop gets them: first those that the client fills at random, then
    /// one from each hop before. Slot 0 is zero.
    fn slots_at_last_hop(
        &self,
        counter: u64,
        streams: &[Slots; MAX_HOPS],
    ) -> Result<Slots, CellError> {
        let n_hops = self.layers.len();
        let mut slots = Slots::ZERO;
        for stream in streams.iter().take(n_hops - 1) {
            slots = slots.towards_first().xor(*stream);
        }
        // Left as they are these slots would reach the first hop as zeros.
        let pad = self.pad_key.slots(counter)?;
        let n_pads = MAX_HOPS - n_hops;
        Ok(slots
            .with_head_of(pad, n_pads + 1)
            .with_first([0; TAG_BYTES]))
    }
}

impl ClientOpener {
    /// Opens a cell in place and says what is in it.
    ///
    /// # Errors
    /// [`CellError`]: close the circuit. A tag of any layer is wrong, the message is none or out
    /// of order, or the circuit broke before.
    pub fn open(&mut self, cell: &mut [u8]) -> Result<Delivered, CellError> {
        let result = self.try_open(cell);
        self.counter.close_on_error(result)
    }

    fn try_open(&mut self, cell: &mut [u8]) -> Result<Delivered, CellError> {
        let (size, area, payload) = CellSize::split(cell)?;
        let counter = self.counter.take()?;
        let streams = streams(&self.layers, counter)?;
        let dropped = self.dropped_slots(&streams);

        let mut slots = Slots::from_bytes(area);
        for ((layer, stream), dropped) in self.layers.iter().zip(streams).zip(dropped) {
            let received = slots.towards_first().xor(stream).with_last(dropped);
            layer.open(counter, size, slots.first(), received, payload)?;
            slots = received;
        }
        let delivered = unframe(payload)?;
        self.order.check(delivered.kind)?;
        Ok(delivered)
    }

    /// What each hop dropped when it shifted: never a tag, as no more than 8 hops tag a cell.
    fn dropped_slots(&self, streams: &[Slots; MAX_HOPS]) -> [u128; MAX_HOPS] {
        let mut dropped = [0; MAX_HOPS];
        let mut received = Slots::ZERO;
        let hops = dropped.iter_mut().zip(streams).take(self.layers.len());
        for (dropped, stream) in hops.rev() {
            *dropped = received.last();
            received = received.xor(*stream).towards_last();
        }
        dropped
    }
}

fn streams(layers: &[LayerKeys], counter: u64) -> Result<[Slots; MAX_HOPS], CellError> {
    let mut streams = [Slots::ZERO; MAX_HOPS];
    for (stream, layer) in streams.iter_mut().zip(layers) {
        *stream = layer.slot_stream(counter)?;
    }
    Ok(streams)
}

impl fmt::Debug for ClientCircuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCircuit").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSealer").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOpener").finish_non_exhaustive()
    }
}

//! Onion cells over a stream between nodes: at the client and the last hop as ends of a pipe, at a hop
//! between as a reader that changes each cell on its way.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use wormholes_proto::onion::{
    CellError, CellSize, ClientOpener, ClientSealer, DATA_OFFSET, Delivered, HopDown, HopUp,
    LastDown, LastUp, MessageKind, SMALL_CELL,
};

use super::{
    PipeError, Toll,
    stream::{StreamReader, StreamWriter},
};

/// The byte before a cell.
const CLASS_BYTES: usize = 1;
/// From so much on a large cell costs less than the small ones that hold the same: they would be
/// 22, each with its tags.
const LARGE_FROM_BYTES: usize = 8 << 10;

/// Opens cells, at either end of a circuit.
#[derive(Debug)]
pub(crate) enum CellOpener {
    /// At the client.
    Client(ClientOpener),
    /// At the last hop.
    Last(Box<LastDown>),
}

/// Makes cells, at either end of a circuit.
#[derive(Debug)]
pub(crate) enum CellSealer {
    /// At the client.
    Client(Box<ClientSealer>),
    /// At the last hop.
    Last(Box<LastUp>),
}

/// Changes cells, at a hop between.
#[derive(Debug)]
pub(crate) enum CellTurner {
    /// Takes a layer off, away from the client.
    Down(HopDown),
    /// Puts a layer on, towards the client.
    Up(HopUp),
}

pub(super) struct OnionReader {
    cells: CellReader,
    opener: CellOpener,
    toll: Option<Toll>,
}

pub(super) struct OnionWriter {
    stream: StreamWriter,
    sealer: CellSealer,
    large_only: bool,
    toll: Option<Toll>,
}

pub(super) struct HopReader {
    cells: CellReader,
    turner: CellTurner,
}

/// Cuts a stream into cells.
struct CellReader {
    stream: StreamReader,
    /// At most one cell and one read more.
    pending: BytesMut,
}

impl OnionReader {
    /// `ahead` is what was read from `stream` already.
    pub(super) fn new(
        stream: StreamReader,
        ahead: &[u8],
        opener: CellOpener,
        toll: Option<Toll>,
    ) -> Self {
        Self {
            cells: CellReader::new(stream, ahead),
            opener,
            toll,
        }
    }

    pub(super) async fn aborted(&mut self) {
        self.cells.stream.aborted().await;
    }

    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        loop {
            let (kind, data) = self.read_message().await?;
            match kind {
                MessageKind::Data if data.is_empty() => {}
                MessageKind::Data => return Ok(Some(data)),
                MessageKind::End => return Ok(None),
                MessageKind::Open | MessageKind::Answer => return Err(out_of_order()),
            }
        }
    }

    /// Reads the first message, which is of one kind, without its length.
    pub(super) async fn read_greeting(&mut self, kind: MessageKind) -> Result<Bytes, PipeError> {
        let (read, mut data) = self.read_message().await?;
        let len = usize::from(data.try_get_u16().map_err(|_| out_of_order())?);
        if read == kind && len == data.len() {
            Ok(data)
        } else {
            Err(out_of_order())
        }
    }

    async fn read_message(&mut self) -> Result<(MessageKind, Bytes), PipeError> {
        while self.cells.whole_cell()?.is_none() {
            if !self.cells.fill().await? {
                return Err(PipeError::Cut);
            }
        }
        let len = self.cells.whole_cell()?.unwrap_or_default();
        if let Some(toll) = &self.toll {
            toll.pass_in(len as u64).await?;
        }
        let mut cell = self.cells.pending.split_to(len);
        cell.advance(CLASS_BYTES);
        let delivered: Result<Delivered, CellError> = match &mut self.opener {
            CellOpener::Client(opener) => opener.open(&mut cell),
            CellOpener::Last(opener) => opener.open(&mut cell),
        };
        let delivered = delivered.map_err(cell_error)?;
        Ok((delivered.kind, cell.freeze().slice(delivered.data)))
    }
}

impl OnionWriter {
    pub(super) fn new(stream: StreamWriter, sealer: CellSealer, toll: Option<Toll>) -> Self {
        Self {
            stream,
            sealer,
            large_only: false,
            toll,
        }
    }

    /// Cells are padded anyway; beyond the small ones' size all are large.
    pub(super) fn set_padding(&mut self, pad_bytes: u32) {
        self.large_only = usize::try_from(pad_bytes).unwrap_or(usize::MAX) > SMALL_CELL;
    }

    pub(super) async fn write_chunks(&mut self, chunks: &[Bytes]) -> Result<(), PipeError> {
        let whole;
        let mut rest: &[u8] = match chunks {
            [chunk] => chunk,
            chunks => {
                whole = chunks.concat();
                &whole
            }
        };
        let mut cells = BytesMut::new();
        while !rest.is_empty() {
            let size = self.size_for(rest.len());
            let (data, after) = rest.split_at(rest.len().min(size.max_data_bytes()));
            self.seal(MessageKind::Data, data, size, &mut cells)?;
            rest = after;
        }
        self.send(cells).await
    }

    /// Sends the first message, with its length.
    pub(super) async fn send_greeting(
        &mut self,
        kind: MessageKind,
        message: &[u8],
    ) -> Result<(), PipeError> {
        let size = CellSize::for_data(message.len()).ok_or_else(out_of_order)?;
        let mut cell = BytesMut::new();
        self.seal(kind, message, size, &mut cell)?;
        self.send(cell).await
    }

    /// See [`StreamWriter::left`].
    pub(super) fn left(&self) -> BoxFuture<'static, ()> {
        self.stream.left()
    }

    pub(super) async fn finish(&mut self) -> Result<(), PipeError> {
        let mut cell = BytesMut::new();
        self.seal(MessageKind::End, &[], self.size_for(0), &mut cell)?;
        self.send(cell).await?;
        self.stream.finish().await
    }

    async fn send(&mut self, cells: BytesMut) -> Result<(), PipeError> {
        if let Some(toll) = &self.toll {
            toll.pass_out(cells.len() as u64).await?;
        }
        self.stream.write_chunks(&mut [cells.freeze()]).await
    }

    fn size_for(&self, len: usize) -> CellSize {
        if self.large_only || len >= LARGE_FROM_BYTES {
            CellSize::Large
        } else {
            CellSize::Small
        }
    }

    fn seal(
        &mut self,
        kind: MessageKind,
        data: &[u8],
        size: CellSize,
        cells: &mut BytesMut,
    ) -> Result<(), PipeError> {
        let start = cells.len() + CLASS_BYTES;
        cells.resize(start + size.bytes(), 0);
        if let Some(class) = cells.get_mut(start - CLASS_BYTES) {
            *class = size.class();
        }
        let cell = cells.get_mut(start..).unwrap_or_default();
        let room = cell.get_mut(DATA_OFFSET..DATA_OFFSET + data.len());
        room.ok_or_else(out_of_order)?.copy_from_slice(data);
        let sealed = match &mut self.sealer {
            CellSealer::Client(sealer) => sealer.seal(kind, data.len(), cell),
            CellSealer::Last(sealer) => sealer.seal(kind, data.len(), cell),
        };
        sealed.map_err(cell_error)
    }
}

impl HopReader {
    pub(super) fn new(stream: StreamReader, ahead: &[u8], turner: CellTurner) -> Self {
        Self {
            cells: CellReader::new(stream, ahead),
            turner,
        }
    }

    /// All whole cells that have come, changed; `None` when the stream ended after a whole one.
    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, PipeError> {
        while self.cells.whole_cell()?.is_none() {
            if !self.cells.fill().await? {
                let at_boundary = self.cells.pending.is_empty();
                return if at_boundary {
                    Ok(None)
                } else {
                    Err(PipeError::Cut)
                };
            }
        }
        let mut turned = BytesMut::new();
        while let Some(len) = self.cells.whole_cell()? {
            let mut cell = self.cells.pending.split_to(len);
            let body = cell.get_mut(CLASS_BYTES..).unwrap_or_default();
            let result = match &mut self.turner {
                CellTurner::Down(down) => down.peel(body),
                CellTurner::Up(up) => up.wrap(body),
            };
            result.map_err(cell_error)?;
            // Neighbours in one buffer: no copy.
            turned.unsplit(cell);
        }
        Ok(Some(turned.freeze()))
    }
}

impl CellReader {
    fn new(stream: StreamReader, ahead: &[u8]) -> Self {
        Self {
            stream,
            pending: BytesMut::from(ahead),
        }
    }

    /// Length with the class byte of the cell at the front; `None` when it is not whole.
    fn whole_cell(&self) -> Result<Option<usize>, PipeError> {
        let Some(class) = self.pending.first() else {
            return Ok(None);
        };
        let size = CellSize::from_class(*class).ok_or_else(|| cell_error(CellError))?;
        let len = CLASS_BYTES + size.bytes();
        Ok((self.pending.len() >= len).then_some(len))
    }

    /// Takes what has come; false at the end of the stream. Cancel-safe.
    async fn fill(&mut self) -> Result<bool, PipeError> {
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
        let chunks = self.stream.read_chunks().await?;
        for chunk in &chunks {
            self.pending.extend_from_slice(chunk);
        }
        Ok(!chunks.is_empty())
    }
}

/// One code for all causes.
fn cell_error(CellError: CellError) -> PipeError {
    PipeError::Malformed("onion cell")
}

fn out_of_order() -> PipeError {
    PipeError::Malformed("onion message")
}

//! A flow to a server that echoes, whose every byte is compared.

use std::{fmt, io, time::Duration};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ring::digest::{Context, SHA256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What is sent at once, and then awaited.
const PIECE_BYTES: usize = 4096;

/// A flow that did not bring back what was sent.
#[derive(Debug)]
pub enum Broken {
    /// It ended with an error, as a flow does whose way is gone.
    Cut(io::Error),
    /// It ended in order, and too early.
    Short,
    /// Nothing came for longer than anybody would wait.
    Stalled,
    /// Other bytes came back.
    Changed,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(error) => write!(f, "cut: {error}"),
            Self::Short => f.write_str("ended in order, too early"),
            Self::Stalled => f.write_str("stalled"),
            Self::Changed => f.write_str("other bytes came back"),
        }
    }
}

impl std::error::Error for Broken {}

/// Sends `n_pieces` of 4 KiB, told by `seed`, each when the one before is back; then half-closes.
/// No piece may take longer than `patience`.
///
/// # Errors
/// [`Broken`].
pub async fn exchange(
    mut stream: TcpStream,
    seed: u64,
    n_pieces: usize,
    patience: Duration,
) -> Result<(), Broken> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut sent, mut back) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..n_pieces {
        random.fill_bytes(&mut piece);
        sent.update(&piece);
        let trip = trip(&mut stream, &mut piece);
        timeout(patience, trip)
            .await
            .map_err(|_| Broken::Stalled)??;
        back.update(&piece);
    }
    let rest = async {
        stream.shutdown().await?;
        stream.read(&mut piece).await
    };
    let rest = timeout(patience, rest).await;
    let rest = rest.map_err(|_| Broken::Stalled)?.map_err(Broken::Cut)?;
    let same = rest == 0 && sent.finish().as_ref() == back.finish().as_ref();
    same.then_some(()).ok_or(Broken::Changed)
}

/// Sends `n_bytes`, told by `seed`, in one go, and reads what comes back meanwhile: its hash must be
/// theirs. The stream is not closed, since not every way has a half-close.
///
/// # Errors
/// [`Broken`]; when nothing came for `patience`.
pub async fn there_and_back(
    stream: &mut TcpStream,
    seed: u64,
    n_bytes: usize,
    patience: Duration,
) -> Result<(), Broken> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut sent, mut back) = (Context::new(&SHA256), Context::new(&SHA256));
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = n_bytes;
        while left > 0 {
            let piece = piece.get_mut(..left.min(PIECE_BYTES)).unwrap_or_default();
            random.fill_bytes(piece);
            sent.update(piece);
            writer.write_all(piece).await.map_err(Broken::Cut)?;
            left -= piece.len();
        }
        writer.flush().await.map_err(Broken::Cut)
    };
    let reading = async {
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = n_bytes;
        while left > 0 {
            let read = timeout(patience, reader.read(&mut piece)).await;
            let read = read.map_err(|_| Broken::Stalled)?.map_err(Broken::Cut)?;
            if read == 0 {
                return Err(Broken::Short);
            }
            back.update(piece.get(..read).unwrap_or_default());
            left = left.saturating_sub(read);
        }
        Ok(())
    };
    tokio::try_join!(sending, reading)?;
    let same = sent.finish().as_ref() == back.finish().as_ref();
    same.then_some(()).ok_or(Broken::Changed)
}

/// Sends a piece and fills it with what comes back.
async fn trip(stream: &mut TcpStream, piece: &mut [u8]) -> Result<(), Broken> {
    stream.write_all(piece).await.map_err(Broken::Cut)?;
    match stream.read_exact(piece).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Broken::Short),
        Err(error) => Err(Broken::Cut(error)),
    }
}

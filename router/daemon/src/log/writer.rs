//! Where lines of the log go: one that comes alone is written at once, and those that follow it
//! closely are written together. Else a busy node would wake whoever collects its log for each flow.
//!
//! Warnings and errors never wait, nor does what came before them. What waits is lost only with a
//! process that is killed, or where others made standard error non-blocking and it takes no more:
//! then whole lines, those that find no room, and what is left at the end.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others.
const PAUSE: Duration = Duration::from_millis(10);
/// What waits: some hundred lines. Overflow: all of it is written at once; of what the sink does not
/// take then, the newest lines that are beyond are dropped, but never the rest of one that it began.
const MAX_WAITING_BYTES: usize = 64 << 10;

/// Has what waits written when it is dropped; from then on nothing waits.
#[must_use = "what waits when it is dropped is written, and nothing waits from then on"]
pub struct LogGuard {
    lines: Arc<Lines>,
    thread: Option<JoinHandle<()>>,
}

/// Takes lines.
pub(super) struct LineWriter(Arc<Lines>);

/// Takes one line.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    is_urgent: bool,
}

struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    sink: Box<dyn Write + Send>,
    waiting: Vec<u8>,
    written: Option<Instant>,
    has_ended: bool,
}

/// A writer to `sink`, and the guard of the thread behind it.
///
/// # Errors
/// What the system says when it starts no thread.
pub(super) fn start(sink: impl Write + Send + 'static) -> io::Result<(LineWriter, LogGuard)> {
    let lines = Arc::new(Lines {
        state: Mutex::new(State {
            sink: Box::new(sink),
            waiting: Vec::new(),
            written: None,
            has_ended: false,
        }),
        changed: Condvar::new(),
    });
    let waiting = Arc::clone(&lines);
    let thread = thread::Builder::new().name("log".to_owned());
    let guard = LogGuard {
        lines: Arc::clone(&lines),
        thread: Some(thread.spawn(move || waiting.write_in_time())?),
    };
    Ok((LineWriter(lines), guard))
}

impl Lines {
    fn take(&self, line: &[u8], is_urgent: bool) {
        let mut state = self.lock();
        let is_first = state.waiting.is_empty();
        let is_alone = is_first && state.written.is_none_or(|at| at.elapsed() >= PAUSE);
        state.waiting.extend_from_slice(line);
        let is_full = state.waiting.len() >= MAX_WAITING_BYTES;
        if is_alone || is_urgent || is_full || state.has_ended {
            state.write();
        }
        if is_first && !state.waiting.is_empty() {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Writes what has waited long enough, until the end.
    fn write_in_time(&self) {
        let mut state = self.lock();
        while !state.has_ended {
            let idle = |state: &mut State| state.waiting.is_empty() && !state.has_ended;
            let some = self.changed.wait_while(state, idle);
            let pausing = |state: &mut State| !state.has_ended;
            let some = some.unwrap_or_else(PoisonError::into_inner);
            let paused = self.changed.wait_timeout_while(some, PAUSE, pausing);
            (state, _) = paused.unwrap_or_else(PoisonError::into_inner);
            state.write();
        }
        // Where the end came before this began.
        state.write();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Under the lock, which keeps lines in order. What the sink does not take yet goes on waiting.
    fn write(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut n_written = 0;
        while let Some(rest @ [_, ..]) = self.waiting.get(n_written..) {
            match self.sink.write(rest) {
                Ok(n_bytes @ 1..) => n_written += n_bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A terminal that was closed takes no lines, and there is nobody else to tell.
                Ok(0) | Err(_) => n_written = self.waiting.len(),
            }
        }
        self.waiting.drain(..n_written.min(self.waiting.len()));
        self.drop_beyond();
        self.written = Some(Instant::now());
    }

    /// Drops the lines that have no room to wait, but for the first: the sink may have begun it.
    fn drop_beyond(&mut self) {
        if self.waiting.len() <= MAX_WAITING_BYTES {
            return;
        }
        let is_end = |byte: &u8| *byte == b'\n';
        let mut within = self.waiting.iter().take(MAX_WAITING_BYTES);
        let last = within.rposition(is_end);
        let last = last.or_else(|| self.waiting.iter().position(is_end));
        self.waiting.truncate(last.map_or(0, |last| last + 1));
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: &self.0,
            is_urgent: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            lines: &self.0,
            is_urgent: *metadata.level() <= Level::WARN,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.take(line, self.is_urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.lines.lock().has_ended = true;
        self.lines.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing to panic about.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogGuard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Tells each write.
    struct Told(Sender<String>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A log to which the first line was just written.
    fn busy() -> (Arc<Lines>, LogGuard, Receiver<String>) {
        let (sender, told) = mpsc::channel();
        let (writer, guard) = start(Told(sender)).unwrap();
        writer.0.take(b"0\n", false);
        assert_eq!(told.try_recv().unwrap(), "0\n", "alone, it does not wait");
        (writer.0, guard, told)
    }

    #[test]
    fn lines_that_come_closely_are_written_together_in_their_order_and_soon() {
        let (lines, _guard, told) = busy();
        let all: Vec<_> = (1..=1000).map(|line| format!("{line}\n")).collect();
        for line in &all {
            lines.take(line.as_bytes(), false);
        }
        let (mut text, mut writes) = (String::new(), 0);
        while text.len() < all.concat().len() {
            text += &told.recv_timeout(LIMIT).unwrap();
            writes += 1;
        }
        assert_eq!(text, all.concat());
        assert!(writes < all.len() / 4, "{writes} writes");
    }

    #[test]
    fn a_warning_waits_for_nothing_and_comes_after_what_was_said_before() {
        let (lines, _guard, told) = busy();
        lines.take(b"1\n", false);
        lines.take(b"2\n", true);
        let written: String = told.try_iter().collect();
        assert_eq!(written, "1\n2\n");
    }

    #[test]
    fn no_more_waits_than_has_room() {
        let (lines, _guard, told) = busy();
        lines.take(&[b'x'; MAX_WAITING_BYTES], false);
        assert_eq!(
            told.try_iter().map(|text| text.len()).sum::<usize>(),
            MAX_WAITING_BYTES
        );
    }

    /// Takes so many bytes, and then none until there is room again.
    struct Narrow {
        room: Arc<Mutex<usize>>,
        taken: Sender<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let n_bytes = bytes.len().min(*room);
            if n_bytes == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            *room -= n_bytes;
            for byte in &bytes[..n_bytes] {
                self.taken.send(*byte).unwrap();
            }
            Ok(n_bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn where_the_sink_takes_no_more_no_line_is_torn() {
        let (room, (sender, taken)) = (Arc::new(Mutex::new(3)), mpsc::channel());
        let sink = Narrow {
            room: Arc::clone(&room),
            taken: sender,
        };
        let (writer, _guard) = start(sink).unwrap();
        let lines: Vec<_> = (0..MAX_WAITING_BYTES)
            .map(|line| format!("line {line}\n"))
            .collect();
        for line in &lines {
            writer.0.take(line.as_bytes(), true);
        }
        assert!(writer.0.lock().waiting.len() <= MAX_WAITING_BYTES);
        *room.lock().unwrap() = usize::MAX;
        // Nobody says more; it is tried again all the same.
        let mut text = String::new();
        while text.len() < MAX_WAITING_BYTES - lines[0].len() || !text.ends_with('\n') {
            text.push(taken.recv_timeout(LIMIT).unwrap().into());
        }
        writer.0.take(b"at last\n", true);
        text.extend(taken.try_iter().map(char::from));
        let all = lines.concat();
        let kept = text.strip_suffix("at last\n").expect("room again");
        assert!(all.starts_with(kept) && kept.ends_with('\n'), "{kept}");
    }

    #[test]
    fn nothing_is_left_behind_when_the_log_ends() {
        let (lines, guard, told) = busy();
        lines.take(b"1\n", false);
        drop(guard);
        assert_eq!(told.try_iter().collect::<String>(), "1\n");
        lines.take(b"2\n", false);
        assert_eq!(
            told.try_recv().unwrap(),
            "2\n",
            "nobody would write it later"
        );
    }
}

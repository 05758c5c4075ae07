//! Ends that are held back, where a stream knows no half-close, as those of Tor and I2P: to end what one
//! side says there ends what the other one has yet to say. So who has said all keeps it to himself until
//! the other end has ended too, or was silent for some time.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

/// What a stream holds while it lasts.
pub(crate) trait Held: fmt::Debug + Send + Sync {
    /// The stream is over. Where nothing ever came on it: how long ago the last was taken that this end
    /// said, or the stream began.
    fn over(&self, unanswered: Option<Duration>);
}

/// How far the two directions of a stream are.
pub(super) struct Ends {
    /// Nothing more is to be expected of who was silent for so long after all was said to him.
    silence: Duration,
    /// How long a program may keep its end open after the other end closed the whole stream.
    linger: Duration,
    /// This end has said all.
    has_said_all: AtomicBool,
    said_all: Notify,
    /// The stream is over, in both directions.
    over: CancellationToken,
}

impl Ends {
    pub(super) fn new(silence: Duration, linger: Duration) -> Self {
        Self {
            silence,
            linger,
            has_said_all: AtomicBool::new(false),
            said_all: Notify::new(),
            over: CancellationToken::new(),
        }
    }

    /// This end has said all.
    pub(super) fn say_all(&self) {
        self.has_said_all.store(true, Relaxed);
        self.said_all.notify_waiters();
    }

    pub(super) fn has_said_all(&self) -> bool {
        self.has_said_all.load(Relaxed)
    }

    /// Ends when the other end was silent for too long after this one has said all. Whoever waits
    /// anew waits the whole time: a program that takes its time to read is not cut short.
    pub(super) async fn fell_silent(&self) {
        while !self.has_said_all() {
            let mut said_all = std::pin::pin!(self.said_all.notified());
            said_all.as_mut().enable();
            if !self.has_said_all() {
                said_all.await;
            }
        }
        sleep(self.silence).await;
    }

    /// The stream is over, in both directions.
    pub(super) fn end(&self) {
        self.over.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ends when the stream is over.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Ends some time after the stream was over: it is gone, whoever still holds on to its near end.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let (over, linger) = (self.over.clone(), self.linger);
        async move {
            over.cancelled().await;
            sleep(linger).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::{Instant, advance, timeout},
    };

    use super::*;
    use crate::pipe::{CopyEnd, CopyLimits, CopyStop, FlowBytes, Pipe, PipeError, copy};

    const SILENCE: Duration = Duration::from_secs(10);

    #[derive(Debug)]
    struct Nothing;

    impl Held for Nothing {
        fn over(&self, _: Option<Duration>) {}
    }

    /// Keeps what it is told at the end.
    #[derive(Debug, Clone, Default)]
    struct Told(Arc<Mutex<Option<Option<Duration>>>>);

    impl Held for Told {
        fn over(&self, unanswered: Option<Duration>) {
            *self.0.lock().unwrap() = Some(unanswered);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_when_all_is_said_and_while_somebody_listens() {
        let ends = Ends::new(SILENCE, SILENCE);
        let unsaid = timeout(SILENCE * 3, ends.fell_silent()).await;
        assert!(unsaid.is_err(), "it may still say something");
        ends.say_all();
        let start = Instant::now();
        for _ in 0..3 {
            let heard = timeout(SILENCE / 2, ends.fell_silent()).await;
            assert!(heard.is_err());
        }
        ends.fell_silent().await;
        assert_eq!(start.elapsed(), SILENCE * 5 / 2);
    }

    /// Two ends of a TCP connection.
    async fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// A copy between a program and something like an I2P router, and their outer ends.
    async fn flow(silence: Duration) -> (TcpStream, TcpStream, tokio::task::JoinHandle<CopyEnd>) {
        let ((program, near), (far, router)) = (tcp().await, tcp().await);
        let far = Pipe::tcp_held(far, Bytes::new(), silence, Box::new(Nothing));
        let task = tokio::spawn(async move {
            let bytes = FlowBytes::default();
            copy(Pipe::tcp(near), far, &CopyLimits::default(), &bytes).await
        });
        (program, router, task)
    }

    #[tokio::test]
    async fn an_answer_comes_though_the_question_has_ended() {
        let (mut program, mut router, task) = flow(SILENCE).await;
        program.write_all(b"question").await.unwrap();
        program.shutdown().await.unwrap();
        let mut question = [0; 8];
        router.read_exact(&mut question).await.unwrap();
        router.write_all(b"answer").await.unwrap();
        router.shutdown().await.unwrap();
        let mut answer = String::new();
        program.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(router.read(&mut question).await.unwrap(), 0);
        assert_eq!(task.await.unwrap().stop, None);
    }

    #[tokio::test]
    async fn an_end_goes_out_after_silence() {
        let (mut program, mut router, task) = flow(Duration::from_millis(50)).await;
        program.shutdown().await.unwrap();
        assert_eq!(router.read(&mut [0; 1]).await.unwrap(), 0);
        drop(router);
        assert_eq!(program.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(task.await.unwrap().stop, None);
    }

    #[tokio::test]
    async fn who_holds_on_to_a_stream_that_is_gone_is_cut() {
        let (mut program, router, task) = flow(Duration::from_millis(50)).await;
        drop(router);
        assert_eq!(program.read(&mut [0; 1]).await.unwrap(), 0);
        let stop = task.await.unwrap().stop;
        assert_eq!(stop, Some(CopyStop::Far(PipeError::Reset)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_counts_from_what_was_said_last() {
        for is_answered in [false, true] {
            let (near, mut router) = tcp().await;
            let told = Told::default();
            let held = Box::new(told.clone());
            let mut pipe = Pipe::tcp_held(near, Bytes::new(), SILENCE, held);
            advance(SILENCE * 2).await;
            let said = pipe.writer.write_chunk(Bytes::from_static(b"log")).await;
            said.unwrap();
            if is_answered {
                router.write_all(b"ok").await.unwrap();
                assert!(pipe.reader.read_chunk().await.unwrap().is_some());
            }
            advance(SILENCE).await;
            drop(pipe);
            let unanswered = (!is_answered).then_some(SILENCE);
            assert_eq!(*told.0.lock().unwrap(), Some(unanswered));
        }
    }
}

//! The end of a direction, held back where the stream behind a TCP connection knows no half-close,
//! as I2P's: to end what one side says there ends what the other one has yet to say. So an end waits
//! until the other direction has ended too, or was silent for some time.

use std::{fmt, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// What a stream holds while it lasts.
pub(crate) trait Held: fmt::Debug + Send + Sync {
    /// The stream is over; whether anything came on it.
    fn over(&self, was_heard: bool);
}

/// Told by the direction that comes in.
pub(super) struct Heard {
    said: watch::Sender<Said>,
    held: Box<dyn Held>,
}

/// Waited for by the direction that goes out.
pub(super) struct Hold {
    said: watch::Receiver<Said>,
    silence: Duration,
}

/// What came so far.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    something: bool,
    has_ended: bool,
}

/// Both, for a stream on which so much silence stands for an end.
pub(super) fn pair(silence: Duration, held: Box<dyn Held>) -> (Heard, Hold) {
    let (sender, said) = watch::channel(Said::default());
    let heard = Heard { said: sender, held };
    (heard, Hold { said, silence })
}

impl Heard {
    /// Something came, or the end.
    pub(super) fn tell(&self, has_ended: bool) {
        self.said.send_modify(|said| {
            said.something |= !has_ended;
            said.has_ended = has_ended;
        });
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let was_heard = self.said.borrow().something;
        self.held.over(was_heard);
    }
}

impl Hold {
    /// Ends when this direction may. Cancel-safe.
    pub(super) async fn released(&mut self) {
        while !self.said.borrow_and_update().has_ended {
            match timeout(self.silence, self.said.changed()).await {
                Ok(Ok(())) => {}
                // Nobody reads any more, or nothing comes.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Ends some time after the other direction did: the stream is gone, whoever still holds on to
    /// its near end.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut said, silence) = (self.said.clone(), self.silence);
        async move {
            // Who reads no more has left, too.
            drop(said.wait_for(|said| said.has_ended).await);
            sleep(silence).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::{Instant, advance},
    };

    use super::*;
    use crate::pipe::{CopyEnd, CopyLimits, CopyStop, FlowBytes, Pipe, PipeError, copy};

    const SILENCE: Duration = Duration::from_secs(10);

    #[derive(Debug)]
    struct Nothing;

    impl Held for Nothing {
        fn over(&self, _: bool) {}
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_for_the_other_one_or_for_silence() {
        let (heard, mut hold) = pair(SILENCE, Box::new(Nothing));
        let start = Instant::now();
        hold.released().await;
        assert_eq!(start.elapsed(), SILENCE);
        heard.tell(false);
        let start = Instant::now();
        let noise = async {
            for _ in 0..3 {
                advance(SILENCE / 2).await;
                heard.tell(false);
            }
            heard.tell(true);
        };
        tokio::join!(hold.released(), noise);
        assert_eq!(start.elapsed(), SILENCE * 3 / 2);
        hold.released().await;
        assert_eq!(start.elapsed(), SILENCE * 3 / 2);
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
}

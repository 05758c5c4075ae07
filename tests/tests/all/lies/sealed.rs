//! Relayed calls: handshakes and frames, sealed under the right keys, told by a relay.

use quinn::Connection;
use wormholes_proto::{
    Open, SignedRecord, Suite, encode_open,
    sealed::{ANSWER_BYTES, HELLO_BYTES},
};
use wormholes_tests::liar::{
    Lie, Told, formats,
    noise::{Frames, SEALED_PAYLOAD_BYTES, call},
};

use super::Scene;

/// What stands before a HELLO: an OPEN, answered by three bytes.
const GRANTED: [u8; 3] = [0, 1, 0];

/// A relay, and a caller behind it, in one.
struct Call<'a> {
    scene: &'a Scene,
    relay: Connection,
    called: SignedRecord,
}

impl<'a> Call<'a> {
    async fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            relay: scene.call(&scene.liar).await,
            called: scene.record_of(scene.target.id()).await,
        }
    }

    /// Calls with this head and payload, and sends what `frames` makes. How many bytes come back
    /// after the answer; `None` when there is no answer.
    async fn make(
        &self,
        head: &[u8],
        payload: &[u8],
        frames: impl FnOnce(&mut Frames) -> Vec<u8>,
    ) -> Option<usize> {
        let (mut send, mut receive) = self.relay.open_bi().await.unwrap();
        send.write_all(&encode_open(&Open::Relayed)).await.unwrap();
        let mut granted = [0; GRANTED.len()];
        receive.read_exact(&mut granted).await.unwrap();
        assert_eq!(granted, GRANTED);
        let (caller, hello) = call(
            self.scene.liar.noise().private(),
            &self.called.id(),
            &self.called.record().noise_key,
            Suite::ChaChaPoly,
            payload,
        )
        .unwrap();
        let hello = [head, &hello].concat();
        let _had_enough = send.write_all(&hello).await;
        if hello.len() < HELLO_BYTES {
            // Else the target waits for the rest.
            let _had_enough = send.finish();
        }
        let mut answer = [0; ANSWER_BYTES];
        if receive.read_exact(&mut answer).await.is_err() {
            return None;
        }
        let mut sealer = caller.answered(&answer).unwrap();
        let _had_enough = send.write_all(&frames(&mut sealer)).await;
        let _had_enough = send.finish();
        let mut back = 0;
        while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
            back += chunk.bytes.len();
        }
        Some(back)
    }

    /// As [`Self::make`], with a HELLO that is true.
    async fn honest(&self, frames: impl FnOnce(&mut Frames) -> Vec<u8>) -> Option<usize> {
        let record = self.scene.liar.signed().unwrap();
        let payload = formats::sealed_record("payload", record.bytes(), SEALED_PAYLOAD_BYTES);
        self.make(&hello_head(), &payload.bytes(), frames).await
    }
}

fn seal(sealer: &mut Frames, plain: &[&[u8]]) -> Vec<u8> {
    let frames = plain.iter().map(|plain| sealer.seal(plain).unwrap());
    frames.collect::<Vec<_>>().concat()
}

fn hello_head() -> Vec<u8> {
    formats::hello_head(Suite::ChaChaPoly.number()).bytes()
}

fn told(back: Option<usize>) -> Told {
    back.map_or(Told::Broken, |back| {
        Told::Accepted(Vec::new(), vec![0; back])
    })
}

#[tokio::test]
async fn a_handshake_that_lies_is_not_answered() {
    let scene = Scene::start(105).await;
    let call = Call::new(&scene).await;
    let open = formats::frame(1, &encode_open(&Scene::service()), 0).bytes();
    let end = formats::frame(2, &[], 0).bytes();
    let frames = |sealer: &mut Frames| seal(sealer, &[&open, &end]);
    assert!(scene.takes(call.honest(frames)).await.is_some());

    let record = scene.liar.signed().unwrap();
    let payload = formats::sealed_record("payload", record.bytes(), SEALED_PAYLOAD_BYTES);
    let say = async |lie: &Lie| told(call.make(&lie.bytes, &payload.bytes(), frames).await);
    let head = formats::hello_head(Suite::ChaChaPoly.number());
    scene.refuses(head.lies(scene.cast()), say).await;

    let say = async |lie: &Lie| told(call.make(&hello_head(), &lie.bytes, frames).await);
    let mut lies = payload.lies(scene.cast());
    let record = formats::record(&scene.liar.record().unwrap());
    let signature = formats::signature(&scene.liar.sign_record(&record.bytes()));
    let whole =
        |record: &[u8]| formats::sealed_record("payload", record, SEALED_PAYLOAD_BYTES).bytes();
    let signed = record.lies(scene.cast()).into_iter();
    let signed = signed.map(|lie| lie.inside(|body| whole(&scene.liar.sign_record(&body))));
    lies.extend(signed);
    let unsigned = signature.lies(scene.cast()).into_iter();
    lies.extend(unsigned.map(|lie| lie.inside(|record| whole(&record))));
    scene.refuses(lies, say).await;
    scene.is_well().await;
}

#[tokio::test]
async fn frames_that_lie_end_their_call() {
    let scene = Scene::start(110).await;
    let call = Call::new(&scene).await;
    let open = formats::open(&Scene::service());
    let first = formats::frame(1, &open.bytes(), 7);
    let data = formats::data_frame(b"to and fro");
    let end = formats::frame(2, &[], 9);
    let [open_frame, data_frame, end_frame] = [&first, &data, &end].map(|frame| frame.bytes());
    let whole: [&[u8]; 3] = [&open_frame, &data_frame, &end_frame];
    let truth = call.honest(|sealer| seal(sealer, &whole));
    // Each frame has 21 bytes beside what is in it.
    let (answer, echo, end_of_echo) = (21 + 3, 21 + 10, 21);
    assert_eq!(scene.takes(truth).await, Some(answer + echo + end_of_echo));

    let inside = |lie: Lie| lie.inside(|open| formats::frame(1, &open, 0).bytes());
    let opens = open.lies(scene.cast()).into_iter().map(inside);
    let opens = opens.chain(first.lies(scene.cast())).collect();
    let say = async |lie: &Lie| {
        call.honest(|sealer| seal(sealer, &[&lie.bytes])).await;
    };
    scene.counts(opens, say).await;
    let end_lies = end.lies(scene.cast());
    for (lies, rest) in [(data.lies(scene.cast()), &end_frame[..]), (end_lies, &[])] {
        let say = async |lie: &Lie| {
            call.honest(|sealer| match rest {
                [] => seal(sealer, &[&open_frame, &lie.bytes]),
                end => seal(sealer, &[&open_frame, &lie.bytes, end]),
            })
            .await;
        };
        scene.counts(lies, say).await;
    }
    let say = async |lie: &Lie| {
        let frame = |sealer: &mut Frames| formats::sealed_frame(&seal(sealer, &[&open_frame]));
        let lied = |sealer: &mut Frames| lie.again(&frame(sealer), scene.cast());
        call.honest(lied).await;
    };
    let sample = formats::sealed_frame(&vec![0; 2 + open_frame.len() + 16]);
    scene.counts(sample.lies(scene.cast()), say).await;
    scene.is_well().await;
}

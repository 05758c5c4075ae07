//! What a stream begins with, told by a friend and by a stranger.

use wormholes_proto::{Host, Open, Target, Transport, encode_open, sealed::SessionId};
use wormholes_tests::liar::{Lie, Told, ask, formats, tell};

use super::Scene;

/// Every kind of OPEN, and whether a friend gets what it asks for.
pub(super) async fn opens(scene: &Scene) -> Vec<(Open, bool)> {
    let record = scene.record_of(scene.target.id()).await;
    let key = record.record().onion_keys[0];
    let (_, slots) = super::onion::create_for_last(&record, &key);
    let host = Host::Name("host.example".to_owned());
    let port = scene.echo.address().port();
    let own = scene.liar.signed().unwrap();
    vec![
        (
            Open::Exit(Transport::Tcp, scene.echo.address().into()),
            true,
        ),
        (
            Open::Exit(Transport::Tcp, Target::new(host.clone(), port)),
            true,
        ),
        (Open::Resolve(host), true),
        (Scene::service(), true),
        (Open::Service(Transport::Tcp, None), true),
        (Open::Relay(scene.friend.id()), true),
        (
            Open::Create {
                key_id: key.key_id,
                slots: Box::new(slots),
            },
            true,
        ),
        (Open::Channel, false),
        (Open::Register(own.bytes().to_vec()), true),
        (Open::Relayed, true),
        (Open::Records, true),
        (Open::Mirror, true),
        // On a connection of its own: it has no relay to come through.
        (Open::Punch(vec![([9, 9, 9, 9], 4433).into()]), false),
        (Open::Move(SessionId::from_bytes([6; 16])), false),
    ]
}

#[tokio::test]
async fn a_friend_that_lies_in_an_open_is_refused_and_counted() {
    let scene = Scene::start(80).await;
    let friend = scene.call(&scene.liar).await;
    for (open, is_served) in opens(&scene).await {
        let message = formats::open(&open);
        let told = ask(&friend, &message.bytes()).await.unwrap();
        assert_eq!(
            matches!(told, Told::Accepted(..)),
            is_served,
            "{open:?}: {told:?}"
        );
        let say = async |lie: &Lie| tell(&friend, &lie.bytes).await.unwrap();
        scene.refuses(message.lies(scene.cast()), say).await;
    }
    scene.is_well().await;
}

#[tokio::test]
async fn a_stranger_gets_nothing_but_a_circuit_whatever_it_says() {
    let scene = Scene::start(85).await;
    let stranger = scene.call(&scene.stranger).await;
    for (open, _) in opens(&scene).await {
        let message = formats::open(&open);
        let mut lies = message.lies(scene.cast());
        let told = ask(&stranger, &message.bytes()).await.unwrap();
        let is_create = matches!(open, Open::Create { .. });
        assert_eq!(matches!(told, Told::Accepted(..)), is_create, "{open:?}");
        // What would be a friend's business is refused to a stranger.
        lies.iter_mut().for_each(|lie| lie.may_pass = false);
        let say = async |lie: &Lie| tell(&stranger, &lie.bytes).await.unwrap();
        scene.refuses(lies, say).await;
    }
    scene.is_well().await;
}

#[tokio::test]
async fn a_record_that_lies_is_not_taken() {
    let scene = Scene::start(90).await;
    let friend = scene.call(&scene.liar).await;
    let record = scene.liar.record().unwrap();
    let message = formats::record(&record);
    let signed = scene.liar.sign_record(&message.bytes());
    let register = |record: Vec<u8>| encode_open(&Open::Register(record));
    let told = tell(&friend, &register(signed.clone())).await.unwrap();
    assert!(matches!(told, Told::Accepted(..)), "{told:?}");
    let lies = message.lies(scene.cast()).into_iter();
    let signed_lies = lies.map(|lie| lie.inside(|body| register(scene.liar.sign_record(&body))));
    let signature = formats::signature(&signed).lies(scene.cast()).into_iter();
    let unsigned = signature.map(|lie| lie.inside(register));
    let say = async |lie: &Lie| tell(&friend, &lie.bytes).await.unwrap();
    scene
        .refuses(signed_lies.chain(unsigned).collect(), say)
        .await;
    scene.is_well().await;
}

//! A liar that tells records, and that takes registrations: what the node asks of every peer.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use wormholes_proto::{Answer, MAX_SET_RECORDS, Open};
use wormholes_tests::{
    Metrics,
    liar::{Asked, Liar, Lie, formats},
    refused_since, until,
};

use super::answers::Asking;

#[tokio::test(flavor = "multi_thread")]
async fn sets_of_records_that_lie_are_not_taken() {
    let scene = Asking::start(136).await;
    // Of a node that is not known: what would not be taken anyway is not looked at.
    let other = Liar::new(Ipv4Addr::new(127, 139, 0, 1)).unwrap();
    let record = formats::record(&other.record().unwrap());
    let signed = other.sign_record(&record.bytes());
    let set = |record: Vec<u8>| formats::set(&record).bytes();
    let records = record.lies(scene.cast()).into_iter();
    let records = records
        // Where its time is not, the signature has one: it is too old or too new to be looked at.
        .filter(|lie| lie.bytes.len() >= 1 + 32 + 8)
        .map(|lie| lie.inside(|body| set(other.sign_record(&body))));
    let signatures = formats::signature(&signed).lies(scene.cast()).into_iter();
    let mut lies: Vec<_> = records
        .chain(signatures.map(|lie| lie.inside(set)))
        .collect();
    // A set that ends badly may begin well: from here on the node may have the true record.
    lies.extend(formats::set(&signed).lies(scene.cast()));
    // Nothing is a set too.
    lies.retain(|lie| !lie.bytes.is_empty());
    lies.push(Lie {
        name: "set, too many".to_owned(),
        bytes: [0, 1, 9].repeat(MAX_SET_RECORDS + 1),
        may_pass: false,
    });
    let grant = formats::answer(&Answer::Accepted(Vec::new()));
    let mut answers = grant.lies(scene.cast());
    // One more byte says how loaded the teller is.
    answers.retain(|lie| !lie.name.ends_with("a byte too many"));
    answers
        .iter_mut()
        .for_each(|lie| lie.bytes.extend(&set(signed.clone())));
    let sets = lies
        .into_iter()
        .map(|lie| lie.inside(|set| [grant.bytes(), set].concat()));

    for lie in sets.chain(answers).filter(|lie| !lie.may_pass) {
        let before = Metrics::read(&scene.client).await.unwrap();
        let told: Arc<[u8]> = lie.bytes.into();
        scene.server.react(move |asked: Asked| {
            let told = Arc::clone(&told);
            async move {
                let told = if asked.open == Open::Records {
                    &told[..]
                } else {
                    &[]
                };
                asked.say(told).await
            }
        });
        // A node asks whoever comes.
        let liar = scene.server.liar();
        let call = liar.call(scene.client.listen().unwrap()).await.unwrap();
        scene.server.adopt(call.clone());
        if let Err(error) = refused_since(&scene.client, &before).await {
            panic!("{}: {error}", lie.name);
        }
        call.close(0_u32.into(), b"");
    }
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_answered_with_lies_is_none() {
    let scene = Asking::start(140).await;
    let grant = formats::answer(&Answer::Accepted(Vec::new()));
    let granted = Arc::<AtomicUsize>::default();
    let answer = |bytes: Vec<u8>| {
        let (bytes, granted) = (Arc::<[u8]>::from(bytes), Arc::clone(&granted));
        let truth = grant.bytes();
        scene.server.react(move |asked: Asked| {
            let (bytes, granted, is_true) = (
                Arc::clone(&bytes),
                Arc::clone(&granted),
                truth[..] == *bytes,
            );
            async move {
                if !matches!(asked.open, Open::Register(_)) {
                    return asked.refuse().await;
                }
                if is_true {
                    granted.fetch_add(1, Relaxed);
                }
                asked.say(&bytes).await
            }
        });
    };
    for lie in grant
        .lies(scene.cast())
        .into_iter()
        .filter(|lie| !lie.may_pass)
    {
        // A node that was registered asks again at once.
        answer(grant.bytes());
        let before = granted.load(Relaxed);
        scene.server.hang_up();
        until("a registration", async || {
            (granted.load(Relaxed) > before).then_some(())
        })
        .await
        .unwrap();
        let before = Metrics::read(&scene.client).await.unwrap();
        answer(lie.bytes);
        scene.server.hang_up();
        if let Err(error) = refused_since(&scene.client, &before).await {
            panic!("{}: {error}", lie.name);
        }
    }
    scene.is_well();
}

//! Liars that do nothing but lie: what that does to honest flows, and to memory.

use std::sync::Arc;

use wormholes_tests::{
    Burden, Foremost, HonestFlow, Turns,
    liar::{Lie, formats, tell},
    soak_rounds, until,
};

use super::{MAX_GROWTH_BYTES, Scene, opens::opens};

#[tokio::test]
async fn liars_without_end_slow_nobody_and_fill_nothing() {
    let _foremost = Foremost::take().await.unwrap();
    let scene = Scene::start(160).await;
    let mut lies = Vec::new();
    for (open, _) in opens(&scene).await {
        lies.extend(formats::open(&open).lies(scene.cast()));
    }
    let lies: Arc<[Lie]> = lies.into();
    let entrance = scene.target.entrance("socks5").unwrap();
    let echo = scene.echo.address();
    let mut honest = HonestFlow::open(entrance, echo).await.unwrap();
    let calls = [
        scene.call(&scene.liar).await,
        scene.call(&scene.stranger).await,
    ];
    let liars = Burden::start(1, move |_, turn| {
        let lies = Arc::clone(&lies);
        let (call, turn) = (calls[turn % calls.len()].clone(), turn / calls.len());
        async move { tell(&call, &lies[turn % lies.len()].bytes).await.map(drop) }
    })
    .unwrap();
    let before = scene.target.resident_bytes().unwrap();
    let grown = || {
        scene
            .target
            .resident_bytes()
            .unwrap()
            .saturating_sub(before)
    };
    let mut trips = Turns::default();
    let mut turns = 0;
    while turns < soak_rounds(15) || trips.go_on() {
        turns += 1;
        liars.rest().await.unwrap();
        let quiet = honest.trips(200).await.unwrap();
        liars.work().await.unwrap();
        let burdened = honest.trips(200).await.unwrap();
        trips.take(&quiet, &burdened);
        assert!(grown() < MAX_GROWTH_BYTES, "grew by {} bytes", grown());
    }
    liars.rest().await.unwrap();
    eprintln!("{} lies, {} KiB more", liars.done(), grown() >> 10);
    eprintln!("{}", trips.check("round trips").unwrap());
    until("memory to fall back", async || {
        (grown() < MAX_GROWTH_BYTES / 2).then_some(())
    })
    .await
    .unwrap();
    scene.is_well().await;
}

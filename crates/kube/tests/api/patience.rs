//! Servers that take their time, or never come to an end.

use std::time::Duration;

use super::support::{Mirror, impatient, server, service};
use flannel_kube::fixture::{ApiServer, Collection, Failure};
use flannel_kube::{Patience, Resource};

const SERVICES: Collection = Collection::Services;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_is_given_up_and_asked_for_again() {
    let server = server();
    server.put(SERVICES, service("a", "10.96.0.1"));
    server.fail(1, &Failure::Hang(Duration::from_secs(600)));
    let patience = Patience {
        answer: Duration::from_millis(500),
        ..Patience::default()
    };
    let mut mirror = Mirror::new(impatient(&server, patience), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    assert_eq!(mirror.objects.len(), 1);
    assert!(
        mirror.lost[0].contains("no answer") || mirror.lost[0].contains("0.5"),
        "{:?}",
        mirror.lost
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_which_nothing_comes_is_begun_again_where_it_stood() {
    let server = server();
    // no bookmark for an hour
    server.behave(|b| b.bookmark_every = Duration::from_secs(3600));
    server.put(SERVICES, service("a", "10.96.0.1"));
    let patience = Patience {
        silence: Duration::from_millis(400),
        ..Patience::default()
    };
    let mut mirror = Mirror::new(impatient(&server, patience), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    goes_on_through_three_watches(&server, &mut mirror, &["/api/v1/services?watch=true"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_the_server_ends_in_time_goes_on_without_a_word() {
    let server = server();
    server.put(SERVICES, service("a", "10.96.0.1"));
    let patience = Patience {
        watch: 1,
        ..Patience::default()
    };
    let mut mirror = Mirror::new(impatient(&server, patience), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    goes_on_through_three_watches(
        &server,
        &mut mirror,
        &["/api/v1/services?watch=true", "timeoutSeconds=1"],
    )
    .await;
}

/// The watch is begun three times, and what changes then is heard of without another list or a word of a loss.
async fn goes_on_through_three_watches(server: &ApiServer, mirror: &mut Mirror, asked: &[&str]) {
    let watches = || server.requests(asked);
    for _ in 0..300 {
        if watches() >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(watches() >= 3, "{} watches", watches());
    server.put(SERVICES, service("b", "10.96.0.2"));
    mirror.until("the change", |m| m.objects.len() == 2).await;
    assert_eq!((mirror.inits, mirror.lost.len()), (1, 0), "{:?}", mirror.lost);
}

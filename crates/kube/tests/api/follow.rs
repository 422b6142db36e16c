//! Following collections of an API server that does all that real ones do.

use std::time::Duration;

use super::support::{Mirror, client, server, service};
use flannel_kube::Resource;
use flannel_kube::fixture::{Collection, Failure};
use serde_json::json;

const SERVICES: Collection = Collection::Services;

fn ip(n: usize) -> String {
    format!("10.96.{}.{}", n / 250, n % 250 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_then_changes() {
    let server = server();
    for n in 0..1203 {
        server.put(SERVICES, service(&format!("s{n}"), &ip(n)));
    }
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    assert_eq!(mirror.objects.len(), 1203);
    assert_eq!(
        server.requests(&["/api/v1/services?limit=500&"]),
        3,
        "three pages"
    );
    server.put(SERVICES, service("new", "10.96.9.9"));
    server.put(SERVICES, service("s0", "10.96.8.8"));
    server.delete(SERVICES, "shop", "s1");
    let done = |m: &Mirror| {
        m.address("shop/new").is_some()
            && m.address("shop/s0").as_deref() == Some("10.96.8.8")
            && !m.objects.contains_key("shop/s1")
    };
    mirror.until("the changes", done).await;
    assert_eq!((mirror.inits, mirror.lost.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_one_piece_is_read_all_the_same() {
    let server = server();
    server.behave(|b| b.whole_lists_from_cache = true);
    for n in 0..1203 {
        server.put(SERVICES, service(&format!("s{n}"), &ip(n)));
    }
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.objects.len() == 1203).await;
    assert_eq!(server.requests(&["/api/v1/services?limit"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_proxies_and_headless_services_are_not_sent() {
    let server = server();
    let labelled = |name: &str, label: &str| {
        let mut object = service(name, "10.96.0.7");
        object["metadata"]["labels"] = json!({label: "x"});
        object
    };
    server.put(
        SERVICES,
        labelled("theirs", "service.kubernetes.io/service-proxy-name"),
    );
    server.put(SERVICES, labelled("headless", "service.kubernetes.io/headless"));
    server.put(SERVICES, service("ours", "10.96.0.1"));
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    assert_eq!(mirror.names(), ["shop/ours"]);
    // One that is handed to another proxy goes, and comes back.
    server.put(
        SERVICES,
        labelled("ours", "service.kubernetes.io/service-proxy-name"),
    );
    mirror.until("it to go", |m| m.objects.is_empty()).await;
    server.put(SERVICES, service("ours", "10.96.0.1"));
    mirror.until("it to come back", |m| m.objects.len() == 1).await;
    assert_eq!(mirror.inits, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_version_is_listed_again_without_an_outage() {
    for by_status in [false, true] {
        let mut server = server();
        server.behave(|b| b.expired_by_status = by_status);
        server.put(SERVICES, service("kept", "10.96.0.1"));
        server.put(SERVICES, service("gone", "10.96.0.2"));
        let mut mirror = Mirror::new(client(&server), Resource::Services);
        mirror.until("the list", |m| m.inits == 1).await;
        server.stop();
        server.delete(SERVICES, "shop", "gone");
        server.put(SERVICES, service("new", "10.96.0.3"));
        server.compact();
        server.restart().unwrap();
        mirror.until("a second list", |m| m.inits == 2).await;
        assert_eq!(mirror.names(), ["shop/kept", "shop/new"], "{by_status}");
        assert!(
            // not the number alone: it may be part of the server's port
            mirror.lost.iter().all(|reason| !reason.contains("HTTP 410")),
            "{:?}",
            mirror.lost
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_keep_a_quiet_watch_from_expiring() {
    let server = server();
    server.behave(|b| b.bookmark_every = Duration::from_millis(20));
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    // Another collection moves the resource version on; this one hears of it by bookmarks only.
    for n in 0..20 {
        server.put(Collection::Nodes, json!({"metadata": {"name": format!("n{n}")}}));
    }
    let before = server.requests(&["/api/v1/services?watch=true"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.break_watches();
    server.put(SERVICES, service("b", "10.96.0.2"));
    mirror.until("the change", |m| m.objects.len() == 2).await;
    assert_eq!(mirror.inits, 1, "no second list");
    assert!(server.requests(&["/api/v1/services?watch=true"]) > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_expires_between_pages_is_begun_again() {
    let server = server();
    for n in 0..700 {
        server.put(SERVICES, service(&format!("s{n}"), &ip(n)));
    }
    // The first page comes, and then nobody knows its token any more (unless the second was faster).
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    for _ in 0..50 {
        if server.requests(&["/api/v1/services?limit"]) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.compact();
    mirror.until("the list", |m| m.objects.len() == 700).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_lived_through() {
    let server = server();
    server.put(SERVICES, service("a", "10.96.0.1"));
    for failure in [
        Failure::Status(429, Some(1)),
        Failure::Status(500, None),
        Failure::CutOff,
        Failure::Hang(Duration::from_millis(50)),
    ] {
        server.fail(1, &failure);
    }
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    assert!(
        mirror.lost[0].contains("HTTP 429") && mirror.lost[1].contains("HTTP 500"),
        "{:?}",
        mirror.lost
    );
    let said = mirror.lost.len();
    // The watch lives for long enough that the next trouble is one of its own.
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.fail(2, &Failure::Status(502, None));
    server.break_watches();
    mirror.until("the watch to go on", |m| m.resumed == 1).await;
    let (broken, refused) = (said + 1, said + 2);
    assert!(
        (broken..=refused).contains(&mirror.lost.len()),
        "each reason is said once: {:?}",
        mirror.lost
    );
    server.put(SERVICES, service("b", "10.96.0.2"));
    mirror.until("the change", |m| m.objects.len() == 2).await;
    assert_eq!(mirror.inits, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_heeded() {
    let server = server();
    server.fail(1, &Failure::Status(429, Some(3)));
    let start = std::time::Instant::now();
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_back_in_time_is_believed_in_the_end() {
    let server = server();
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    mirror.until("the list", |m| m.inits == 1).await;
    server.go_back_to(4_000_000_000);
    server.delete(SERVICES, "shop", "a");
    server.put(SERVICES, service("b", "10.96.0.2"));
    server.compact();
    mirror.until("the other state", |m| m.names() == ["shop/b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_service_cidrs_has_none() {
    let server = server();
    server.behave(|b| b.service_cidrs = false);
    let mut mirror = Mirror::new(client(&server), Resource::ServiceCidrs);
    mirror.until("the empty list", |m| m.inits == 1).await;
    assert!(mirror.objects.is_empty() && mirror.lost.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_own_node_is_followed() {
    let server = server();
    for name in ["n1", "n2"] {
        server.put(
            Collection::Nodes,
            json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}}}),
        );
    }
    let mut mirror = Mirror::new(client(&server), Resource::Node("n2".to_owned()));
    mirror.until("the list", |m| m.inits == 1).await;
    assert_eq!(mirror.names(), ["n2"]);
    server.delete(Collection::Nodes, "", "n1");
    server.delete(Collection::Nodes, "", "n2");
    mirror.until("its end", |m| m.objects.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_state_is_exact_whatever_goes_wrong() {
    let server = server();
    server.behave(|b| b.bookmark_every = Duration::from_millis(30));
    let mut mirror = Mirror::new(client(&server), Resource::Services);
    // A fixed sequence that visits every kind of trouble; no chance is involved.
    for step in 0usize..400 {
        let name = format!("s{}", step * 7 % 23);
        match step % 5 {
            0 => server.delete(SERVICES, "shop", &name),
            _ => drop(server.put(SERVICES, service(&name, &ip(step)))),
        }
        match step {
            130 => server.break_watches(),
            200 | 310 => server.compact(),
            250 => server.fail(1, &Failure::CutOff),
            370 => server.fail(1, &Failure::Status(503, None)),
            _ => {}
        }
        if step % 40 == 39 {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }
    server.put(SERVICES, service("last", "10.96.99.1"));
    let expected: Vec<(String, String)> = server
        .objects(SERVICES)
        .iter()
        .map(|o| {
            (
                format!("shop/{}", o["metadata"]["name"].as_str().unwrap()),
                o["spec"]["clusterIP"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let same = |m: &Mirror| {
        let known: Vec<(String, String)> = m
            .names()
            .iter()
            .filter_map(|n| Some(((*n).to_owned(), m.address(n)?)))
            .collect();
        known == expected
    };
    mirror.until("the end state", same).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_ends_with_its_receiver() {
    let server = server();
    let mirror = Mirror::new(client(&server), Resource::Services);
    for _ in 0..500 {
        if server.watches() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(mirror);
    for _ in 0..500 {
        if server.watches() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the watch lives on");
}

use proptest::prelude::*;

use super::*;

fn hello(versions: &[u32]) -> Hello {
    Hello {
        versions: versions.to_vec(),
        program: "migrate 9\u{1b}[31m".into(),
        host: HostRef { id: Uuid::from_u128(1), name: "h2".into() },
        address: None,
        port: 7420,
    }
}

#[test]
fn the_bytes_of_version_1_are_fixed() {
    let golden = r#"{"hello":{"versions":[1],"program":"p","host":{"id":"00000000-0000-0000-0000-000000000001","name":"h2"},"port":7420}}"#;
    let said = Hello { program: "p".into(), ..hello(&[1]) };
    let bytes = Frame::Hello(Box::new(said)).encode().unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), golden);
    let attempt = Attempt { move_id: Uuid::from_u128(2), attempt: Uuid::from_u128(3) };
    for (ask, golden) in [
        (Ask::Info, r#"{"ask":{"id":7,"ask":"info"}}"#),
        (
            Ask::Abandon(attempt),
            r#"{"ask":{"id":7,"ask":{"abandon":{"move_id":"00000000-0000-0000-0000-000000000002","attempt":"00000000-0000-0000-0000-000000000003"}}}}"#,
        ),
    ] {
        let frame = Frame::Ask { id: 7, ask: raw(&ask).unwrap() };
        assert_eq!(String::from_utf8(frame.encode().unwrap()).unwrap(), golden);
        let Frame::Ask { id: 7, ask } = Frame::decode(golden.as_bytes()).unwrap() else {
            panic!("{golden}")
        };
        unraw::<Ask>(&ask).unwrap();
    }
}

#[test]
fn the_best_common_version_is_taken_or_both_are_named() {
    assert_eq!(common_version(&[3, 2], &hello(&[1, 2, 3, 4])).unwrap(), 3);
    assert_eq!(common_version(&[1], &hello(&[2, 1])).unwrap(), 1);
    let none = common_version(&[1], &hello(&[7, 8])).unwrap_err().0;
    assert_eq!(none.code, ErrorCode::NoCommonVersion);
    assert!(none.message.contains("[7, 8]") && none.message.contains("h2"), "{}", none.message);
    assert!(!none.message.contains('\u{1b}'), "a peer's words are cleaned");
}

#[test]
fn rights_are_asked_for() {
    let attempt = Attempt { move_id: Uuid::nil(), attempt: Uuid::nil() };
    let only = |right: Right| -> Rights { [right].into_iter().collect() };
    assert_eq!(allowed(&Ask::Abandon(attempt), Rights::NONE), Err(Right::Send));
    assert_eq!(allowed(&Ask::Abandon(attempt), only(Right::Receive)), Err(Right::Send));
    assert_eq!(allowed(&Ask::Whereabouts(attempt), only(Right::Receive)), Ok(()));
    assert_eq!(allowed(&Ask::Info, only(Right::Send)), Err(Right::Observe));
    let remove = Ask::Remove("a".parse().unwrap());
    assert_eq!(allowed(&remove, Rights::usual()), Err(Right::Control));
    assert_eq!(allowed(&Ask::Hosts(Hosts::default()), Rights::NONE), Ok(()));
}

#[test]
fn too_long_is_refused_before_it_is_read() {
    let long = vec![b' '; FRAME_MAX + 1];
    assert!(matches!(Frame::decode(&long), Err(BadFrame::TooLong(_))));
    let deep = format!("{{\"ask\":{{\"id\":1,\"ask\":{}1{}}}}}", "[".repeat(500), "]".repeat(500));
    let Ok(Frame::Ask { ask, .. }) = Frame::decode(deep.as_bytes()) else { panic!("{deep}") };
    assert!(unraw::<Ask>(&ask).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn a_changed_frame_is_refused_or_read(at in 0usize..300, with in any::<u8>()) {
        let attempt = Attempt { move_id: Uuid::from_u128(2), attempt: Uuid::from_u128(3) };
        let words = Words { frame: "00ff".into() };
        let carried = Carried { guest: Uuid::nil(), move_id: attempt.move_id, words };
        let frame = Frame::Ask { id: 7, ask: raw(&Ask::Words(carried)).unwrap() };
        let mut bytes = frame.encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(Frame::Ask { ask, .. }) = Frame::decode(&bytes) {
            let _ = unraw::<Ask>(&ask);
        }
    }
}

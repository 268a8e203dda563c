use super::verdict::{
    ConnectResult, PublishResult, RefreshResult, RpcResult, Verdict, check, parse,
};
use super::*;
use crate::auth::claims::{Overrides, SubOptions};

const LIMITS: Limits = Limits {
    in_flight_max: 3,
    timeout: Duration::from_secs(1),
    breaker: BreakerLimits {
        calls: 4,
        failures_percent: 50,
        open: Duration::from_secs(5),
    },
};
const PATIENCE_NS: u64 = 1_250_000_000;
const OPEN_NS: u64 = 5_000_000_000;

fn line(kinds: &[AskKind]) -> (Box<Line>, Questions) {
    let (asks, questions) = channel(kinds, LIMITS).unwrap();
    (asks.0.unwrap(), questions)
}

fn token(index: u64) -> Token {
    Token::from_bits(index)
}

fn ids(questions: &Questions) -> Vec<u64> {
    let taken = questions.take(100).into_iter();
    taken
        .filter_map(|question| match question {
            Question::Ask { id, .. } => Some(id),
            Question::Breaker { .. } | Question::Log(_) => None,
        })
        .collect()
}

fn now() -> u64 {
    host::monotonic_ns()
}

#[test]
fn an_answer_comes_back_with_the_token_that_asked() {
    let (mut asks, questions) = channel(&[AskKind::Rpc], LIMITS).unwrap();
    let id = asks.ask(token(7), AskKind::Rpc, b"{}".to_vec()).unwrap();
    let taken = questions.take(10);
    let asked = Question::Ask {
        id,
        kind: AskKind::Rpc,
        body: b"{}".to_vec(),
    };
    assert_eq!(taken, [asked]);
    assert_eq!(asks.in_flight(), 1);
    questions.answer(id, AskKind::Rpc, Ok(b"{}".to_vec()));
    let answers = asks.take_answers();
    assert_eq!(answers[0].token, token(7));
    assert_eq!(answers[0].body, Ok(b"{}".to_vec()));
    assert_eq!((answers.len(), asks.in_flight()), (1, 0));
    assert_eq!(asks.take_waits_ms().len(), 1);
}

#[test]
fn nobody_is_asked_what_is_not_on() {
    let mut off = Asks::off();
    assert!(!off.is_on(AskKind::Connect));
    assert_eq!(
        off.ask(token(1), AskKind::Connect, Vec::new()),
        Err(Fallback::Failed)
    );
    assert!(off.as_fd().is_none() && off.tallies().is_none());
    assert_eq!(off.sleep_max(), Duration::MAX);
    let (mut asks, _questions) = channel(&[AskKind::Rpc], LIMITS).unwrap();
    assert!(asks.is_on(AskKind::Rpc) && !asks.is_on(AskKind::Connect));
    assert!(asks.ask(token(1), AskKind::Connect, Vec::new()).is_err());
}

#[test]
fn no_more_questions_wait_than_the_bound() {
    let (mut line, questions) = line(&[AskKind::Rpc]);
    for index in 0..3 {
        line.ask(token(index), AskKind::Rpc, Vec::new(), now())
            .unwrap();
    }
    let fourth = line.ask(token(3), AskKind::Rpc, Vec::new(), now());
    assert_eq!(fourth, Err(Fallback::Full));
    let full = Outcome::Fallback(Fallback::Full);
    assert_eq!(line.tallies[AskKind::Rpc as usize].of(full), 1);
    let id = ids(&questions)[0];
    questions.answer(id, AskKind::Rpc, Ok(Vec::new()));
    line.take_answers(now());
    assert!(
        line.ask(token(3), AskKind::Rpc, Vec::new(), now()).is_ok(),
        "an answer makes room"
    );
}

#[test]
fn a_stuck_interpreter_holds_nobody_for_ever() {
    let (mut line, questions) = line(&[AskKind::Rpc]);
    let began = now();
    let id = line.ask(token(1), AskKind::Rpc, Vec::new(), began).unwrap();
    assert!(line.take_answers(began + PATIENCE_NS - 1).is_empty());
    let answers = line.take_answers(began + PATIENCE_NS);
    assert_eq!(answers[0].body, Err(Fallback::Stuck));
    assert_eq!(answers[0].id, id);
    // What it says in the end is no answer any more.
    questions.answer(id, AskKind::Rpc, Ok(Vec::new()));
    assert!(line.take_answers(began + PATIENCE_NS).is_empty());
    let tally = line.tallies[AskKind::Rpc as usize];
    assert_eq!(tally.of(Outcome::Fallback(Fallback::Stuck)), 1);
    assert_eq!(tally.of(Outcome::Answered), 0);
}

#[test]
fn python_does_not_see_questions_that_were_given_up() {
    let (mut line, questions) = line(&[AskKind::Rpc]);
    let long_ago = now() - PATIENCE_NS;
    line.ask(token(1), AskKind::Rpc, Vec::new(), long_ago)
        .unwrap();
    let second = line.ask(token(1), AskKind::Rpc, Vec::new(), now()).unwrap();
    assert_eq!(ids(&questions), [second]);
}

#[test]
fn the_bound_holds_while_python_takes_nothing() {
    let (mut line, _questions) = line(&[AskKind::Rpc]);
    let mut refused = 0;
    for round in 0..10 {
        let at = now() + round * OPEN_NS;
        if line.ask(token(1), AskKind::Rpc, Vec::new(), at).is_err() {
            refused += 1;
        }
        line.take_answers(at + PATIENCE_NS);
    }
    assert_eq!(
        refused, 7,
        "three wait in the queue, which Python never empties"
    );
}

#[test]
fn after_too_many_failures_nobody_is_asked_until_one_call_is_answered() {
    let (mut line, questions) = line(&[AskKind::Rpc]);
    let began = now();
    for _ in 0..4 {
        let id = line.ask(token(1), AskKind::Rpc, Vec::new(), began).unwrap();
        assert_eq!(ids(&questions), [id]);
        questions.answer(id, AskKind::Rpc, Err(Fallback::Failed));
        line.take_answers(began);
    }
    let refused = line.ask(token(1), AskKind::Rpc, Vec::new(), began);
    assert_eq!(refused, Err(Fallback::Open));
    assert!(line.tallies[AskKind::Rpc as usize].is_open);
    let opened = Question::Breaker {
        kind: AskKind::Rpc,
        open: true,
    };
    assert!(questions.take(100).contains(&opened), "for the log");
    let later = began + OPEN_NS;
    let id = line.ask(token(1), AskKind::Rpc, Vec::new(), later).unwrap();
    assert!(line.ask(token(1), AskKind::Rpc, Vec::new(), later).is_err());
    questions.answer(id, AskKind::Rpc, Ok(Vec::new()));
    line.take_answers(later);
    assert!(!line.tallies[AskKind::Rpc as usize].is_open);
    assert!(line.ask(token(1), AskKind::Rpc, Vec::new(), later).is_ok());
}

#[test]
fn one_kind_that_fails_does_not_close_the_others() {
    let (mut line, questions) = line(&[AskKind::Rpc, AskKind::Publish]);
    for _ in 0..4 {
        let id = line.ask(token(1), AskKind::Rpc, Vec::new(), now()).unwrap();
        assert_eq!(ids(&questions), [id]);
        questions.answer(id, AskKind::Rpc, Err(Fallback::Timeout));
        line.take_answers(now());
    }
    assert!(line.ask(token(1), AskKind::Rpc, Vec::new(), now()).is_err());
    assert!(
        line.ask(token(1), AskKind::Publish, Vec::new(), now())
            .is_ok()
    );
}

#[test]
fn ends_of_clients_are_told_without_waiting_for_an_answer() {
    let (mut line, questions) = line(&[AskKind::Disconnect]);
    for _ in 0..10 {
        let told = line.ask(token(1), AskKind::Disconnect, Vec::new(), now());
        assert_eq!(told, Ok(0), "beyond what may wait for answers");
    }
    assert_eq!(ids(&questions), [0; 10]);
    questions.answer(0, AskKind::Disconnect, Ok(Vec::new()));
    questions.answer(0, AskKind::Disconnect, Err(Fallback::Failed));
    assert!(line.take_answers(now()).is_empty());
    let tally = line.tallies[AskKind::Disconnect as usize];
    assert_eq!(tally.of(Outcome::Answered), 1);
    assert_eq!(tally.of(Outcome::Fallback(Fallback::Failed)), 1);
}

#[test]
fn what_is_told_is_bounded_too_and_counted_beyond() {
    let (mut line, _questions) = line(&[AskKind::Disconnect]);
    for _ in 0..TOLD_MAX {
        line.ask(token(1), AskKind::Disconnect, Vec::new(), now())
            .unwrap();
    }
    let beyond = line.ask(token(1), AskKind::Disconnect, Vec::new(), now());
    assert_eq!(beyond, Err(Fallback::Full));
}

#[test]
fn who_waits_is_answered_before_ends_are_told() {
    let (mut line, questions) = line(&[AskKind::Disconnect, AskKind::Rpc]);
    line.ask(token(1), AskKind::Disconnect, Vec::new(), now())
        .unwrap();
    let id = line.ask(token(1), AskKind::Rpc, Vec::new(), now()).unwrap();
    assert_eq!(ids(&questions), [id, 0]);
}

#[test]
fn keys_that_nobody_asked_for_are_taken() {
    let (mut line, questions) = line(&[AskKind::Keys]);
    questions.answer(0, AskKind::Keys, Ok(b"{}".to_vec()));
    let answers = line.take_answers(now());
    assert_eq!(answers[0].token, token(NOBODY));
    assert_eq!(answers[0].kind, AskKind::Keys);
}

#[test]
fn lines_for_the_log_go_to_python_where_there_is_a_thread_for_them() {
    let (mut asks, questions) = channel(&[AskKind::Rpc], LIMITS).unwrap();
    assert_eq!(asks.log("a line".to_string()), Ok(()));
    assert_eq!(questions.take(10), [Question::Log("a line".to_string())]);
    let off = Asks::off().log("a line".to_string());
    assert_eq!(off, Err("a line".to_string()));
}

#[test]
fn the_descriptor_tells_of_answers() {
    let (asks, questions) = channel(&[AskKind::Rpc], LIMITS).unwrap();
    let line = asks.0.as_ref().unwrap();
    assert!(!line.answered.wait(Duration::ZERO));
    questions.answer(1, AskKind::Rpc, Ok(Vec::new()));
    assert!(line.answered.wait(Duration::ZERO));
}

#[test]
fn an_answer_grants_what_it_says() {
    let body = br#"{"result": {"user": "42", "expire_at": 1700000000, "info": {"name": "A\nB" },
        "b64data": "eyJhIjogMX0=", "meta": 5, "channels": ["a", "b"],
        "subs": {"b": {"data": [1, 2], "override": {"presence": {"value": true}}}},
        "caps": "of another edition"}}"#;
    let expected = ConnectResult {
        user: "42".to_string(),
        expire_at: Some(1_700_000_000),
        info: br#"{"name":"A\nB"}"#.to_vec(),
        data: br#"{"a":1}"#.to_vec(),
        meta: b"5".to_vec(),
        subs: vec![
            ("a".to_string(), SubOptions::default()),
            (
                "b".to_string(),
                SubOptions {
                    data: b"[1,2]".to_vec(),
                    overrides: Overrides {
                        presence: Some(true),
                        ..Overrides::default()
                    },
                    ..SubOptions::default()
                },
            ),
        ],
    };
    assert_eq!(parse(body), Ok(Verdict::Result(expected)));
}

#[test]
fn an_empty_answer_is_an_empty_result() {
    for body in [&b"{}"[..], br#"{"result": {}}"#, br#"{"result": null}"#] {
        let expected = Verdict::Result(PublishResult::default());
        assert_eq!(parse(body), Ok(expected));
    }
    assert_eq!(parse(b"{\"result\": {}}"), Ok(Verdict::Result(())));
}

#[test]
fn an_answer_to_a_call_may_be_binary() {
    let result = |body: &[u8]| match parse::<RpcResult>(body) {
        Ok(Verdict::Result(result)) => result,
        other => panic!("{other:?}"),
    };
    let binary = result(br#"{"result": {"b64data": "bm8ganNvbg=="}}"#);
    assert_eq!((&*binary.data, binary.is_binary), (&b"no json"[..], true));
    let json = result(br#"{"result": {"b64data": "eyJhIjogMX0="}}"#);
    assert_eq!((&*json.data, json.is_binary), (&br#"{"a":1}"#[..], false));
}

#[test]
fn errors_and_disconnects_are_answers_too() {
    let error = parse::<RpcResult>(br#"{"error": {"code": 400, "message": "no"}}"#);
    let expected = Verdict::Error {
        code: 400,
        message: "no".to_string(),
        temporary: false,
    };
    assert_eq!(error, Ok(expected));
    let disconnect = parse::<RefreshResult>(br#"{"disconnect": {"code": 4500, "reason": "bye"}}"#);
    let expected = Verdict::Disconnect {
        code: 4500,
        reason: "bye".to_string(),
    };
    assert_eq!(disconnect, Ok(expected));
}

#[test]
fn rubbish_is_no_answer() {
    for body in [
        &b""[..],
        b"null",
        b"[]",
        b"true",
        b"{",
        b"\xff",
        br#"{"reslt": {}}"#,
        br#"{"result": 1}"#,
        br#"{"result": {"user": 42}}"#,
        br#"{"result": {"expire_at": -1}}"#,
        br#"{"result": {"expire_at": "soon"}}"#,
        br#"{"result": {"b64info": "*"}}"#,
        br#"{"result": {"b64info": "bm8ganNvbg=="}}"#,
        br#"{"result": {"subs": []}}"#,
        br#"{"result": {}, "error": {"code": 400}}"#,
        br#"{"error": {"code": 0, "message": "none"}}"#,
        br#"{"error": {"message": "no code"}}"#,
        br#"{"disconnect": {"code": 1000, "reason": ""}}"#,
        br#"{"disconnect": {"code": 4999, "reason": "true"}}"#,
        br#"{"disconnect": {"code": 70000, "reason": ""}}"#,
    ] {
        let text = String::from_utf8_lossy(body);
        assert!(check(AskKind::Connect, body).is_err(), "{text}");
        assert_eq!(parse::<ConnectResult>(body), Err(Fallback::Failed));
    }
}

#[test]
fn every_kind_has_a_name_of_its_own_and_is_found_by_it() {
    for (index, kind) in KINDS.into_iter().enumerate() {
        assert_eq!(kind as usize, index);
        assert_eq!(AskKind::named(kind.name()), Some(kind));
    }
    for (index, outcome) in OUTCOMES.into_iter().enumerate() {
        assert_eq!(outcome.index(), index);
    }
    assert_eq!(AskKind::named("answer"), None);
}

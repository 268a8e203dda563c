//! Statistics from outside: what is counted is read, and sums never fall.

#![cfg(not(loom))]

use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;
use tidegate_ring::stats::{
    BUCKETS, Kind, Metric, Role, Row, SchemaLine, Stats, Value, bucket_bound, bucket_of, extend,
    format, segment_bytes,
};

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};

const METRICS: [Metric; 3] = [
    Metric {
        kind: Kind::Counter,
        name: "things_total{kind=\"a b\"}",
        help: "Things.",
    },
    Metric {
        kind: Kind::Histogram,
        name: "wait_microseconds",
        help: "Wait.",
    },
    Metric {
        kind: Kind::Gauge,
        name: "connections",
        help: "Now.",
    },
];

fn segment() -> Region {
    let schema: Vec<SchemaLine> = METRICS.iter().map(SchemaLine::from).collect();
    let region = Region::heap(segment_bytes(&schema, 3).unwrap());
    format(&region, &schema, 3, OWNER).unwrap();
    region
}

fn counted(region: &Region, row: u32) -> Row {
    let row = Row::claim(region.clone(), row, Role::Worker, 7, 2).unwrap();
    row.add(row.index_of(METRICS[0].name).unwrap(), 5);
    row.record(row.index_of(METRICS[1].name).unwrap(), 100);
    row.set(row.index_of(METRICS[2].name).unwrap(), 9);
    row
}

fn line(kind: Kind, name: &str) -> SchemaLine {
    SchemaLine {
        kind,
        name: name.into(),
        help: "Later.".into(),
    }
}

#[test]
fn later_code_adds_metrics_and_no_count_is_lost() {
    let region = segment();
    let old_reader = Stats::attach(region.clone()).unwrap();
    let _old_row = counted(&region, 1);
    let mut wanted: Vec<SchemaLine> = METRICS[1..].iter().map(SchemaLine::from).collect();
    wanted.push(line(Kind::Counter, "later_total"));
    wanted.push(line(Kind::Histogram, "later_microseconds"));

    extend(&region, &wanted, true).unwrap();
    assert_eq!(Stats::attach(region.clone()).unwrap().schema().len(), 3);
    extend(&region, &wanted, false).unwrap();
    extend(&region, &wanted, false).unwrap();

    let reader = Stats::attach(region.clone()).unwrap();
    let names: Vec<&str> = reader
        .schema()
        .iter()
        .map(|line| line.name.as_str())
        .collect();
    assert_eq!(names[..3], METRICS.map(|metric| metric.name));
    assert_eq!(names[3..], ["later_total", "later_microseconds"]);
    let row = Row::claim(region.clone(), 2, Role::Worker, 8, 1).unwrap();
    row.add(row.index_of("later_total").unwrap(), 4);
    let rows = reader.rows();
    assert_eq!(rows[0].values[0], Value::Number(5));
    assert_eq!(rows[0].values[3], Value::Number(0));
    assert_eq!(rows[1].values[3], Value::Number(4));
    assert_eq!(old_reader.rows()[0].values[..], rows[0].values[..3]);

    let supervisor = Row::claim(region.clone(), 0, Role::Supervisor, 0, 1).unwrap();
    drop(row);
    supervisor.fold(2).unwrap();
    assert_eq!(reader.rows()[0].values[3], Value::Number(4));
}

#[test]
fn metrics_without_room_or_of_another_kind_change_nothing() {
    let region = segment();
    let many: Vec<SchemaLine> = (0..300)
        .map(|n| line(Kind::Counter, &format!("later_{n}_total")))
        .collect();
    let other = [line(Kind::Gauge, METRICS[0].name)];
    for refused in [&many[..], &other] {
        for only_check in [true, false] {
            assert!(extend(&region, refused, only_check).is_err());
        }
    }
    assert_eq!(Stats::attach(region.clone()).unwrap().schema().len(), 3);
    extend(&region, &many[..250], false).unwrap();
    assert_eq!(Stats::attach(region).unwrap().schema().len(), 253);
}

#[test]
fn a_row_is_taken_up_as_it_is() {
    let region = segment();
    drop(counted(&region, 1));
    let row = Row::resume(region.clone(), 1).unwrap();
    row.add(row.index_of(METRICS[0].name).unwrap(), 1);
    let rows = Stats::attach(region).unwrap().rows();
    assert_eq!(rows[0].values[0], Value::Number(6));
    assert_eq!(rows[0].identity.slot, 7);
}

#[test]
fn buckets_meet_without_gap_or_overlap() {
    let bounds: Vec<u64> = (0..BUCKETS).map_while(bucket_bound).collect();
    assert_eq!(bounds.len(), BUCKETS - 1);
    for (bucket, bound) in bounds.iter().enumerate() {
        assert_eq!(bucket_of(*bound), bucket);
        assert_eq!(bucket_of(bound + 1), bucket + 1);
    }
    assert_eq!(bucket_of(131_072), BUCKETS - 1);
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
}

#[test]
fn what_a_process_counts_is_read_by_others() {
    let region = segment();
    let row = counted(&region, 1);
    row.heartbeat();
    let rows = Stats::attach(region).unwrap().rows();
    assert_eq!(rows.len(), 1);
    let identity = rows[0].identity;
    assert_eq!((rows[0].row, identity.slot, identity.generation), (1, 7, 2));
    assert_eq!(
        (identity.pid, identity.role),
        (u64::from(std::process::id()), 3)
    );
    assert!(identity.heartbeat_ns > 0);
    assert_eq!(rows[0].values[0], Value::Number(5));
    assert_eq!(rows[0].values[2], Value::Number(9));
    let Value::Histogram {
        buckets,
        sum,
        count,
    } = &rows[0].values[1]
    else {
        panic!("the schema says a histogram");
    };
    assert_eq!((buckets[bucket_of(100)], *sum, *count), (1, 100, 1));
}

#[test]
fn a_dead_process_keeps_its_counts_and_loses_its_gauges() {
    let region = segment();
    let supervisor = Row::claim(region.clone(), 0, Role::Supervisor, 0, 1).unwrap();
    drop(counted(&region, 2));
    supervisor.fold(2).unwrap();
    let rows = Stats::attach(region.clone()).unwrap().rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].values[0], Value::Number(5));
    assert!(matches!(
        &rows[0].values[1],
        Value::Histogram {
            sum: 100,
            count: 1,
            ..
        }
    ));
    assert_eq!(rows[0].values[2], Value::Number(0));
    drop(counted(&region, 2));
    supervisor.fold(2).unwrap();
    assert_eq!(
        Stats::attach(region).unwrap().rows()[0].values[0],
        Value::Number(10)
    );
}

#[test]
fn a_sum_over_rows_never_falls_while_rows_are_folded() {
    let region = segment();
    let supervisor = Row::claim(region.clone(), 0, Role::Supervisor, 0, 1).unwrap();
    let reader = Stats::attach(region.clone()).unwrap();
    let done = std::sync::Mutex::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2_000 {
                drop(counted(&region, 1));
                supervisor.fold(1).unwrap();
            }
            *done.lock().unwrap() = true;
        });
        let mut last = 0;
        while !*done.lock().unwrap() {
            let sum = reader
                .rows()
                .iter()
                .fold(0, |sum, row| match row.values[0] {
                    Value::Number(value) => sum + value,
                    Value::Histogram { .. } => panic!("the schema says a counter"),
                });
            assert!(sum >= last, "{sum} after {last}");
            last = sum;
        }
    });
}

#[test]
fn rows_and_metrics_that_are_not_there_are_refused() {
    let region = segment();
    let claim = |row| Row::claim(region.clone(), row, Role::Api, 0, 0);
    assert_eq!(claim(3).unwrap_err().code(), "segment_parameter");
    let row = claim(1).unwrap();
    assert_eq!(claim(1).unwrap_err().code(), "segment_claimed");
    assert!(row.index_of("things_total").is_none());
    assert_eq!(row.fold(1).unwrap_err().code(), "segment_parameter");
    assert_eq!(row.fold(3).unwrap_err().code(), "segment_parameter");
}

#[test]
fn a_schema_that_cannot_be_read_back_is_refused() {
    let line = |name: &str, help: &str| SchemaLine {
        kind: Kind::Counter,
        name: name.into(),
        help: help.into(),
    };
    for wrong in [line("a\tb", ""), line("a", "b\nc")] {
        let schema = [wrong];
        let region = Region::heap(segment_bytes(&schema, 1).unwrap());
        assert!(format(&region, &schema, 1, OWNER).is_err(), "{schema:?}");
    }
}

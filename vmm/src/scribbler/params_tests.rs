use super::*;

#[test]
fn a_full_specification() {
    let spec = "scribbler:ws=32M,rate=5000,pattern=hot,hb=1ms,compress=25,seed=0x10,tag=a,log=1";
    let params = Params::parse(spec).unwrap();
    assert_eq!(params.ws, Some(32 << 20));
    assert_eq!(params.rate, Rate::Pages(5000));
    assert_eq!(params.pattern, Pattern::Hot);
    assert_eq!(params.heartbeat, Duration::from_millis(1));
    assert_eq!((params.compress, params.seed, params.tag, params.log), (25, 16, 'a', true));
}

#[test]
fn nothing_means_the_defaults() {
    for spec in ["scribbler", "scribbler:", "", " , "] {
        assert_eq!(Params::parse(spec), Ok(Params::default()), "{spec:?}");
    }
}

#[test]
fn rates_in_bytes_become_pages() {
    for text in ["200MiB/s", "200M/s", "200M"] {
        assert_eq!(Params::parse(&format!("rate={text}")).unwrap().rate, Rate::Pages(51200));
    }
    assert_eq!(Params::parse("rate=max").unwrap().rate, Rate::Max);
    assert_eq!(Params::parse("rate=0").unwrap().rate, Rate::Pages(0));
}

#[test]
fn mistakes_name_the_key_and_what_is_allowed() {
    for (spec, part) in [
        ("foo=1", "unknown parameter `foo`; known are ws, data"),
        ("ws", "`ws` is not of the form"),
        ("ws=1M,ws=2M", "`ws` is given twice"),
        ("ws=1000", "ws takes a size in whole pages"),
        ("ws=-1M", "ws=-1M is not possible"),
        ("ws=+1M", "ws=+1M is not possible"),
        ("ws=99999999999G", "ws takes"),
        ("ws=\u{e9}", "ws takes"),
        ("rate=fast", "rate takes pages a second"),
        ("rate=100000001", "rate takes"),
        ("hb=50us", "hb takes 0, or 100us to 1000s"),
        ("hb=10", "hb takes"),
        ("hb=2000s", "hb takes"),
        ("hot=0", "hot takes 1 to 99"),
        ("hotp=101", "hotp takes 0 to 100"),
        ("compress=x", "compress takes"),
        ("seed=0x", "seed takes"),
        ("tag=S", "tag takes one printable"),
        ("tag=ab", "tag takes"),
        ("log=2", "log takes 0 or 1"),
        ("pattern=rand", "pattern takes seq, random or hot"),
        ("tsc_khz=1", "tsc_khz takes"),
    ] {
        let error = Params::parse(spec).unwrap_err().to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
}

#[test]
fn every_documented_key_can_be_set() {
    for doc in PARAMS {
        let fits = ["0", "1", "seq", "1s", "x", "200000"];
        assert!(fits.iter().any(|v| Params::default().set(doc.key, v).is_some()), "{}", doc.key);
    }
}

#[test]
fn what_fits() {
    let params = |spec| Params::parse(spec).unwrap();
    assert_eq!(params("ws=12M").fits(16 << 20, 1), Ok(()));
    assert_eq!(
        params("ws=8M,data=8M").fits(16 << 20, 1),
        Err(ParamError::TooLarge { needed: 4096, available: 3072 })
    );
    assert!(params("ws=12M,log=1").fits(16 << 20, 1).is_err());
    assert!(params("").fits(4 << 20, 1).is_err());
    assert_eq!(params("ws=8K").fits(16 << 20, 2), Err(ParamError::TooSmall { pages: 2, cpus: 2 }));
    assert_eq!(params("ws=0").fits(16 << 20, 32), Ok(()));
    assert_eq!(params("").fits(16 << 20, 33), Err(ParamError::Cpus(33)));
    // RAM above the hole counts, all of it.
    let pages = params("").available_pages(5 << 30, 1);
    assert_eq!(pages, ((5 << 30) - PAGES) / PAGE_SIZE);
}

#[test]
fn the_command_line_says_everything() {
    let params = Params::parse("ws=32M,hb=1ms,poison=3").unwrap();
    assert_eq!(
        params.command_line(4, Some(0x600)),
        "cpus=4 data=0 rate=1000 pattern=random hot=10 hotp=90 compress=0 seed=1 hb=1000us \
         status=1000000us poll=50000us verify=0us tag=. log=0 ws=33554432 poison=3 pm=1536"
    );
}

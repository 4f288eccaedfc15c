//! Checkpoints: what is saved is what is loaded; damage and malice end in errors; a full disk costs nothing.

use sparse_engine::checkpoint::{Best, Checkpoint, Meta, NetState, NormState, ParamState, Progress, Running, Scaling};
use sparse_engine::config::{Config, Overrides, resolve};
use sparse_engine::data::{ImageShape, Preprocess};
use sparse_engine::report::{DataInfo, Engine, Score};
use sparse_engine::rng::{Purpose, Stream};
use std::path::{Path, PathBuf};
use std::process::Command;

fn config() -> Config {
    let mut config = resolve(None, None, &Overrides { seed: Some(7), ..Default::default() }).unwrap().config;
    config.preprocess = Some(Preprocess { mean: vec![0.1 + 0.2], std: vec![1.0 / 3.0] });
    config
}

fn param(name: &str, shape: &[usize], kept: Option<&[u32]>, tag: u64) -> ParamState {
    let n = kept.map_or(shape.iter().product(), <[u32]>::len);
    let stream = Stream::new(tag, Purpose::Init, name);
    // Arbitrary bit patterns, denormals and negative zeros among them: bytes must come back, not just numbers.
    let bits = |offset: u64| (0..n as u64).map(|i| f32::from_bits(stream.block(i + offset)[0] & 0x807f_ffff)).collect();
    let (values, momentum) = (bits(0), bits(1 << 32));
    ParamState { name: name.into(), shape: shape.into(), kept: kept.map(Into::into), values, momentum }
}

fn sample(tag: u64) -> Checkpoint {
    let kept: Vec<u32> = (0..144).filter(|i| i % 7 < 2).collect();
    let net = NetState {
        params: vec![
            param("z.conv.weight", &[4, 4, 3, 3], Some(&kept), tag), // not in alphabetical order: the order is kept
            param("bn.gamma", &[4], None, tag),
            param("fc.weight", &[10, 4], Some(&[0, 39]), tag),
            param("fc.bias", &[10], None, tag),
            param("one", &[1], None, tag),
        ],
        norms: vec![NormState { name: "bn".into(), mean: vec![-0.0, 1e-40, 3.5, 1.0], var: vec![0.1, 0.2, 0.3, 0.4] }],
    };
    let data = DataInfo {
        source: "builtin:fashion-mnist".into(),
        kind: "idx".into(),
        checksum: "ab".repeat(32),
        image: ImageShape { c: 1, h: 28, w: 28 },
        classes: 10,
        train: 1001,
        val: 0,
        test: 100,
    };
    let score = Score { loss: 1.0 / 3.0, accuracy: 0.1 + 0.2, n: 100 };
    let progress = Progress {
        step: 21,
        epoch: 2,
        batch: 5,
        running: Running { loss_sum: 0.1 + 0.7, correct: 5, n: 640 },
        best: Some(Best { epoch: 1, score }),
        scaling: Some(Scaling { scale: 1024.0, good: 7, held: 2 }),
    };
    Checkpoint { net, meta: Meta { engine: Engine::this(), config: config(), data, progress } }
}

/// Equal bit for bit (`==` takes -0 for 0).
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a, b);
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (a, b) in a.net.params.iter().zip(&b.net.params) {
        assert_eq!((bits(&a.values), bits(&a.momentum)), (bits(&b.values), bits(&b.momentum)));
    }
    for (a, b) in a.net.norms.iter().zip(&b.net.norms) {
        assert_eq!((bits(&a.mean), bits(&a.var)), (bits(&b.mean), bits(&b.var)));
    }
}

fn saved(c: &Checkpoint) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.safetensors");
    c.save(&path).unwrap();
    (folder, path)
}

fn error(path: &Path) -> String {
    let e = Checkpoint::load(path).unwrap_err();
    assert_eq!(e.exit_code(), 1);
    let text = e.to_string();
    assert!(text.starts_with(path.to_str().unwrap()) && !text.contains('\n'), "{text:?}");
    text
}

#[test]
fn what_is_saved_is_what_is_loaded_and_equal_states_are_equal_files() {
    let (folder, path) = saved(&sample(1));
    assert_same(&Checkpoint::load(&path).unwrap(), &sample(1));
    let again = folder.path().join("again.safetensors");
    sample(1).save(&again).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    sample(2).save(&path).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &sample(2));
    let empty = Checkpoint { net: NetState::default(), ..sample(1) };
    empty.save(&path).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &empty);
}

#[test]
fn other_tools_can_read_it() {
    let (_folder, path) = saved(&sample(1));
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("values/bn.gamma").unwrap().shape(), [4]);
    assert_eq!(file.tensor("index/fc.weight").unwrap().data(), [0, 0, 0, 0, 39, 0, 0, 0]);
    assert_eq!(file.tensor("momentum/fc.weight").unwrap().shape(), [2]);
    assert!(file.tensor("index/fc.bias").is_err(), "a dense tensor stores no index");
    assert_eq!(file.tensor("running_var/bn").unwrap().shape(), [4]);
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    let config = metadata.metadata().as_ref().unwrap()["config"].clone();
    assert_eq!(Config::from_toml(&config, "header").unwrap(), sample(1).meta.config);
}

#[test]
fn every_truncation_is_an_error() {
    let (_folder, path) = saved(&sample(1));
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..64).chain((64..bytes.len()).step_by(37)).chain(bytes.len() - 9..bytes.len()) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        error(&path);
    }
    std::fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    error(&path);
}

#[test]
fn every_flipped_bit_is_an_error() {
    let (_folder, path) = saved(&sample(1));
    let bytes = std::fs::read(&path).unwrap();
    let stream = Stream::new(3, Purpose::Data, "flips");
    let random = (0..1000).map(|i| stream.below(i, 8 * bytes.len() as u64) as usize);
    for bit in (0..64).chain(random) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        error(&path);
    }
}

/// A safetensors file with this header text and these data bytes.
fn forge(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn claims_beyond_the_file_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    assert!(error(&path).contains("cannot read the checkpoint"));
    assert!(error(folder.path()).contains("wanted a checkpoint file"));
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(error(&path).contains("not a whole safetensors file"));
    forge(&path, "{}", &[]);
    assert!(error(&path).contains("wanted the format \"sparse-engine checkpoint 1\", got \"\""));
    forge(&path, r#"{"__metadata__":{"format":"sparse-engine checkpoint 9"}}"#, &[]);
    assert!(error(&path).contains("got \"sparse-engine checkpoint 9\""));
    forge(&path, r#"{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}"#, &[0; 4]);
    error(&path);
    if Path::new("/dev/zero").exists() {
        assert!(error(Path::new("/dev/zero")).contains("wanted a checkpoint file")); // would never end
    }
    let layouts = [
        (r#"{\"params\":[],\"norms\":[]}"#, "wanted 0 tensors, got 2"),
        (
            r#"{\"params\":[{\"name\":\"w\",\"shape\":[4294967296,4294967296],\"masked\":true}],\"norms\":[]}"#,
            "beyond 2^32-1",
        ),
        (
            r#"{\"params\":[{\"name\":\"w\",\"shape\":[18446744073709551615,3],\"masked\":true}],\"norms\":[]}"#,
            "beyond 2^32-1",
        ),
        (
            r#"{\"params\":[{\"name\":\"w\",\"shape\":[2],\"masked\":true}],\"norms\":[]}"#,
            "ascending positions below 2",
        ),
        (
            r#"{\"params\":[{\"name\":\"w\",\"shape\":[9],\"masked\":true}],\"norms\":[]}"#,
            "lacks the tensor \"momentum/w\"",
        ),
        (r#"{\"params\":[{\"name\":\"w\",\"shape\":[9],\"masked\":false}],\"norms\":[]}"#, "wanted F32 of shape [9]"),
        (
            r#"{\"params\":[{\"name\":\"v\",\"shape\":[9],\"masked\":false}],\"norms\":[]}"#,
            "lacks the tensor \"values/v\"",
        ),
        (r#"{\"params\":[],\"norms\":[{\"name\":\"b\",\"channels\":18446744073709551615}]}"#, "lacks the tensor"),
        (r#"{\"params\":[],\"norms\":[{\"name\":\"b\",\"channels\":-1}]}"#, "its layout cannot be read"),
        ("{", "its layout cannot be read"),
    ];
    for (layout, wanted) in layouts {
        let header = format!(
            r#"{{"__metadata__":{{"format":"sparse-engine checkpoint 1","config":"","progress":"","layout":"{layout}"}},
            "index/w":{{"dtype":"U32","shape":[2],"data_offsets":[0,8]}},
            "values/w":{{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}}}"#
        );
        forge(&path, &header, &[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(error(&path).contains(wanted), "{layout}: {}", error(&path));
    }
    let header = r#"{"__metadata__":{"format":"sparse-engine checkpoint 1","config":"","progress":"",
        "layout":"{\"params\":[{\"name\":\"w\",\"shape\":[9],\"masked\":true}],\"norms\":[]}"},
        "index/w":{"dtype":"U32","shape":[2],"data_offsets":[0,8]}}"#;
    forge(&path, header, &[3, 0, 0, 0, 3, 0, 0, 0]);
    assert!(error(&path).contains("ascending positions below 9"), "twice the same position");
}

#[test]
fn progress_that_contradicts_itself_is_refused() {
    let (_folder, path) = saved(&sample(1)); // 1001 images in batches of 128: 8 steps an epoch
    let with = |change: &dyn Fn(&mut Progress)| {
        let mut c = sample(1);
        change(&mut c.meta.progress);
        c.save(&path).map(|()| error(&path))
    };
    for change in [
        &(|p: &mut Progress| p.step += 1) as &dyn Fn(&mut Progress),
        &|p| p.epoch = u64::MAX,
        &|p| (p.batch, p.step) = (9, 25),
        &|p| (p.epoch, p.batch, p.step) = (1 << 20, 0, 8 << 20),
    ] {
        assert!(with(change).unwrap().contains("its progress contradicts itself"));
    }
    sample(1).save(&path).unwrap();
    let nan = with(&|p| p.running.loss_sum = f64::NAN).unwrap_err();
    assert!(nan.to_string().contains("not finite"), "{nan}");
    assert_same(&Checkpoint::load(&path).unwrap(), &sample(1));
}

#[test]
fn two_parameters_of_one_name_are_not_written() {
    let (_folder, path) = saved(&sample(1));
    let mut c = sample(2);
    c.net.params[1].name = "fc.bias".into();
    assert!(c.save(&path).unwrap_err().to_string().contains("two tensors named \"values/fc.bias\""));
    assert_same(&Checkpoint::load(&path).unwrap(), &sample(1));
}

#[test]
fn the_first_difference_of_another_model_is_named() {
    let net = sample(1).net;
    net.check_same_layout(&sample(2).net).unwrap();
    let changed = |change: &dyn Fn(&mut NetState)| {
        let mut other = sample(2).net;
        change(&mut other);
        let e = net.check_same_layout(&other).unwrap_err();
        assert_eq!(e.exit_code(), 1);
        e.to_string()
    };
    type Case<'a> = (&'a dyn Fn(&mut NetState), &'a str);
    let cases: &[Case] = &[
        (&|n| n.params[1].name = "x".into(), "parameter 1: wanted \"bn.gamma\", got \"x\""),
        (&|n| n.params[2].shape = vec![100, 4], "fc.weight: wanted shape [10, 4], got [100, 4]"),
        (&|n| n.params[2].kept = Some([0, 38][..].into()), "fc.weight: wanted position 39 kept, got 38"),
        (&|n| n.params[2].kept = Some([0][..].into()), "fc.weight: wanted 2 kept weights, got 1"),
        (&|n| n.params[2].kept = None, "fc.weight: wanted a mask, got a dense tensor"),
        (&|n| n.params[3].kept = Some([0][..].into()), "fc.bias: wanted a dense tensor, got a mask"),
        (&|n| n.params[3].values.truncate(9), "fc.bias: wanted 10 values, got 9"),
        (&|n| n.params[3].momentum.truncate(9), "fc.bias: wanted 10 momenta, got 9"),
        (&|n| n.params.truncate(4), "wanted 5 parameters, got 4"),
        (&|n| n.params.push(n.params[0].clone()), "wanted 5 parameters, got 6"),
        (&|n| n.norms[0].name = "x".into(), "batch norm 0: wanted \"bn\", got \"x\""),
        (&|n| n.norms[0].var.truncate(3), "bn: wanted 4 channels, got 3"),
        (&|n| n.norms.clear(), "wanted 1 batch norms, got 0"),
    ];
    for (change, wanted) in cases {
        let text = changed(change);
        assert!(text.contains(wanted) && text.contains("another network"), "{wanted}: {text}");
    }
}

/// Run by the tests below in a process whose disk is full; `SPARSE_ENGINE_TEST_FOLDER` names a folder that holds the older
/// file.
#[test]
fn child_saves_on_a_full_disk() {
    let Ok(folder) = std::env::var("SPARSE_ENGINE_TEST_FOLDER") else { return };
    let path = Path::new(&folder).join("last.safetensors");
    sample(1).save(&path).expect("room for the first");
    let mut big = sample(2);
    big.net.params[0].shape = vec![1 << 16];
    big.net.params[0].kept = None;
    big.net.params[0].values = vec![1.0; 1 << 16];
    big.net.params[0].momentum = vec![1.0; 1 << 16];
    let e = big.save(&path).expect_err("no room for the second");
    assert!(matches!(e, sparse_engine::Error::Io { .. }));
    assert!(e.to_string().contains("last.safetensors: cannot write the checkpoint: "), "{e}");
    assert_same(&Checkpoint::load(&path).unwrap(), &sample(1));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "the temporary file is gone");
    println!("the older one survived");
}

/// The test above in a shell that first does `setup`.
#[cfg(unix)]
fn in_shell(program: &[&str], setup: &str, folder: &Path) -> (bool, String) {
    let script = format!("{setup} && exec \"$0\" --exact child_saves_on_a_full_disk --nocapture");
    let out = Command::new(program[0])
        .args(&program[1..])
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("SPARSE_ENGINE_TEST_FOLDER", folder)
        .output();
    match out {
        Ok(out) => {
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            (out.status.success() && text.contains("the older one survived"), text)
        }
        Err(e) => (false, e.to_string()),
    }
}

#[test]
#[cfg(unix)]
fn a_file_size_limit_keeps_the_older_file() {
    let folder = tempfile::tempdir().unwrap();
    // 64 blocks of 512 or 1024 bytes; the signal ignored, so that the write fails as on a full disk.
    let (ok, text) = in_shell(&["sh"], "trap '' XFSZ && ulimit -f 64", folder.path());
    assert!(ok, "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_keeps_the_older_file() {
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=128k full '{}'", folder.path().display());
    let own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh"];
    let may = Command::new(own_mounts[0]).args(&own_mounts[1..]).args(["-c", &mount]).output();
    if !may.is_ok_and(|o| o.status.success()) {
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: this machine lets no test mount a small disk\n"),
        ));
        return;
    }
    let (ok, text) = in_shell(&own_mounts, &mount, folder.path());
    assert!(ok, "{text}");
}

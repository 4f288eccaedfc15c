//! Scores and kept counts against PyTorch in f64: `scripts/make_saliency_fixture.py` describes the file.

use super::{Lists, close, kept, small_vgg};
use safetensors::{Dtype, SafeTensors};
use sparse_engine::backend::cpu::CpuBackend;
#[cfg(feature = "emu")]
use sparse_engine::backend::gpu::{
    GpuBackend, Precision,
    emu::{Emulated, Order},
};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::graph::{Graph, Net};
use sparse_engine::models;
use sparse_engine::saliency::{Batch, ScoreNet, snip};
use std::collections::HashMap;
use std::path::Path;

#[derive(serde::Deserialize)]
struct About {
    parts: Vec<usize>,
    params: HashMap<String, Vec<(String, Vec<usize>)>>,
}

struct Fixture {
    about: About,
    bytes: Vec<u8>,
}

impl Fixture {
    fn load() -> Fixture {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saliency_f64.safetensors");
        let bytes = std::fs::read(&path).expect("the fixture is part of the repository");
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let about = &header.metadata().as_ref().unwrap()["about"];
        Fixture { about: serde_json::from_str(about).unwrap(), bytes }
    }

    fn numbers<const SIZE: usize, T>(&self, name: &str, dtype: Dtype, read: fn([u8; SIZE]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(t.dtype(), dtype, "{name}");
        t.data().chunks_exact(SIZE).map(|b| read(b.try_into().unwrap())).collect()
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        self.numbers(name, Dtype::F32, f32::from_le_bytes)
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        self.numbers(name, Dtype::F64, f64::from_le_bytes)
    }

    fn labels(&self) -> Vec<u32> {
        self.numbers("labels", Dtype::U32, u32::from_le_bytes)
    }

    fn graph(&self, net: &str) -> Graph {
        let graph = if net == "vgg" { small_vgg() } else { models::resnet(8, 4, 3, 4, 10).unwrap() };
        let params: Vec<_> = graph.params().iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        assert_eq!(params, self.about.params[net], "{net}: parameters and their order");
        graph
    }

    fn values(&self, net: &str, graph: &Graph) -> Lists {
        let flat = self.f32s(&format!("{net}.values")).into_iter().map(f64::from).collect();
        cut(flat, graph.params().iter().map(|p| p.size()))
    }

    fn scores(&self, net: &str, graph: &Graph, what: &str) -> Lists {
        cut(self.f64s(&format!("{net}.{what}")), graph.maskable().iter().map(|m| m.size()))
    }
}

fn cut(flat: Vec<f64>, sizes: impl Iterator<Item = usize>) -> Lists {
    let mut rest = &flat[..];
    let lists = sizes.map(|size| rest.split_off(..size).unwrap().to_vec()).collect();
    assert!(rest.is_empty());
    lists
}

const DENSITIES: [f64; 3] = [0.05, 0.1, 0.5];

/// Counts a tensor are equal, but for scores as good as equal to the lowest kept one.
fn same_counts(what: &str, got: &Lists, want: &Lists) {
    for density in DENSITIES {
        let mut all = want.concat();
        all.sort_by(|a, b| b.total_cmp(a));
        let lowest = all[(density * all.len() as f64).round() as usize - 1];
        let near = |s: &&f64| (*s - lowest).abs() <= 1e-9 * all[0].abs();
        let ties: Vec<usize> = want.iter().map(|list| list.iter().filter(near).count()).collect();
        let counts = kept(got, density).into_iter().zip(kept(want, density)).zip(ties);
        for (tensor, ((got, want), ties)) in counts.enumerate() {
            let slack = if ties > 1 { ties } else { 0 };
            assert!(got.abs_diff(want) <= slack, "{what}, density {density}, tensor {tensor}: {got}, wanted {want}");
        }
    }
}

#[test]
fn scores_and_counts_are_pytorchs() {
    let fixture = Fixture::load();
    let (images, labels) = (fixture.f32s("images"), fixture.labels());
    let len = images.len() / labels.len();
    let cuts = fixture.about.parts.windows(2).map(|w| w[0]..w[1]);
    let parts: Vec<Batch> =
        cuts.map(|r| Batch { images: &images[r.start * len..r.end * len], labels: &labels[r] }).collect();
    assert_eq!(parts.iter().map(|p| p.labels.len()).collect::<Vec<_>>(), [7, 4], "ragged halves");
    let all = Batch { images: &images, labels: &labels };
    for name in ["resnet", "vgg"] {
        let graph = fixture.graph(name);
        let values = fixture.values(name, &graph);
        let net = ScoreNet::new(&graph, &values, 2).unwrap();
        let check = |what: &str, got: Lists| {
            let want = fixture.scores(name, &graph, what);
            let what = format!("{name}, {what}");
            close(&what, &got, &want, 1e-9);
            same_counts(&what, &got, &want);
        };
        let (loss, want) = (net.gradient(all, 1.0).unwrap().loss, fixture.f64s(&format!("{name}.loss"))[0]);
        assert!((loss - want).abs() <= 1e-12 * want, "{name}: loss {loss}, wanted {want}");
        check("snip", net.snip(all).unwrap());
        check("grasp1", net.grasp(&parts, 1.0).unwrap());
        check("grasp200", net.grasp(&parts, 200.0).unwrap());

        let mut reference = Net::new(&graph, &[], labels.len(), |spec| Ok(RefBackend::new(spec))).unwrap();
        check("snip", snip(&mut reference, &graph, &values, all).unwrap());
    }
}

#[test]
fn f32_backends_keep_pytorchs_counts() {
    let fixture = Fixture::load();
    let (images, labels) = (fixture.f32s("images"), fixture.labels());
    let all = Batch { images: &images, labels: &labels };
    for name in ["resnet", "vgg"] {
        let graph = fixture.graph(name);
        let values = fixture.values(name, &graph);
        let want = fixture.scores(name, &graph, "snip");
        let check = |backend: &str, got: Lists| {
            for density in DENSITIES {
                let pairs = kept(&got, density).into_iter().zip(kept(&want, density));
                assert!(
                    pairs.clone().all(|(g, w)| g.abs_diff(w) <= 2),
                    "{name}, {backend}: {:?}",
                    pairs.collect::<Vec<_>>()
                );
            }
        };
        let mut cpu = Net::new(&graph, &[], 16, |spec| CpuBackend::new(spec, 2)).unwrap();
        check("cpu", snip(&mut cpu, &graph, &values, all).unwrap());
        #[cfg(feature = "emu")]
        {
            let make = |spec| GpuBackend::new(Emulated::new(Order::Ascending)?, spec, Precision::F32, None);
            check("emulated gpu", snip(&mut Net::new(&graph, &[], 16, make).unwrap(), &graph, &values, all).unwrap());
        }
    }
}

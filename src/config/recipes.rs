//! The recipes inside the binary: complete configurations, each of which names its source.

/// A built-in configuration.
#[derive(Debug)]
pub struct Recipe {
    /// Name for `--recipe`.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The TOML text, comments included.
    pub text: &'static str,
}

/// What is trained when nothing is asked for.
pub const DEFAULT: &str = "fashion-mnist-resnet20";

/// All built-in recipes.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: DEFAULT,
        about: "built-in Fashion-MNIST images, ResNet-20, ERK at sparsity 0.9: minutes on two cores",
        text: include_str!("../../recipes/fashion-mnist-resnet20.toml"),
    },
    Recipe {
        name: "cifar10-resnet20",
        about: "the paper's CIFAR-10 recipe, ResNet-20, ERK at sparsity 0.9, 160 epochs (needs --data)",
        text: include_str!("../../recipes/cifar10-resnet20.toml"),
    },
];

/// The recipe of that name; the error lists those there are.
pub(super) fn find(name: &str) -> Result<&'static Recipe, String> {
    RECIPES.iter().find(|r| r.name == name).ok_or_else(|| {
        let names: Vec<_> = RECIPES.iter().map(|r| r.name).collect();
        let near = crate::error::nearest(name, names.iter().copied());
        let hint = near.map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default();
        format!("unknown recipe {name:?}{hint} (allowed: {})", names.join(", "))
    })
}

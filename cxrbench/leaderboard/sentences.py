"""The limits that the statistics go by, and every sentence that says what a number means and how it was computed."""

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # what a corrected p must be below
ROPE = 0.005  # AUC: the band within which two methods count as practically equal
FEW_FOLDS = 5  # with fewer, a note says how little they can show
DATA_SETS_FOR_A_DIAGRAM = 6

# --- how a difference was tested

BY_FOLDS = (
    "Mean difference over {folds} test folds{seeds}. Interval and p: a t-test with {df:.3g} degrees of "
    "freedom, corrected for the patients that the folds' training parts have in common (Nadeau and Bengio 2003; "
    "test/train = {ratio:.2f}{assumed}). Effect: the difference in standard deviations of a single run."
)
ASSUMED = ", taken from {folds} folds of which one tests and one validates; the records do not count the parts"
BY_PATIENTS = (
    "Difference on the same {patients:,} test patients{runs}. Interval and p: its standard deviation in "
    "{replicates:,} resamples of whole patients, the same for both methods, with {df:.3g} degrees of freedom (fewer, the "
    "rarer the findings). DeLong's test with patients as clusters (Obuchowski 1997) gives {delong}. It speaks of other "
    "patients, not of other trainings."
)
FAMILY = "p is corrected by Holm's method for the {n} {what}."

# --- why one was not

OTHER_RUNS = "Not tested: the two have not the same folds and seeds."
NO_SPREAD_OF_FOLDS = (
    "Not tested: the difference is the same in every fold, which leaves nothing to judge it by."
)
NO_PREDICTIONS = (
    "No test is possible with one test part and no predictions: records hold scores only. Where the store that made "
    "them is at hand, patients are drawn anew."
)
OTHER_IMAGES = "Not tested: the two were tested on different images."
FEW_PATIENTS = "Not tested: too few patients; in most resamples of them some label has no positive or no negative left."

# --- what came of it

VERDICTS = {
    "better": f"Better: the corrected p is below {ALPHA:g}.",
    "worse": f"Worse: the corrected p is below {ALPHA:g}.",
    "practically equal": f"Practically equal: the whole interval lies within ±{ROPE:g}.",
    "not told apart": (
        "Not told apart: a difference of this size may be chance; that does not show that they are equal."
    ),
}

# --- notes of a table

SUMMARY = (
    f"Differences are in macro AUC; intervals hold {100 * LEVEL:g} % for each alone, p is corrected for all comparisons of "
    f"its family (Holm) and counts below {ALPHA:g}. Methods whose whole interval lies within ±{ROPE:g} are called "
    f"practically equal."
)
TIES = (
    "Rows share a place as far down as none can be told apart from the best of their group; two rows of one group "
    "may still differ, and sharing a place does not show that they are equal."
)
RANK_INTERVALS = (
    "A rank interval holds the places that a method takes in 95 % of {of}; where it is wide, another {draw} could "
    "well give another order."
)
OF_FOLDS = {"of": "a bootstrap over folds", "draw": "choice of folds"}
OF_PATIENTS = {"of": "resamples of the test patients", "draw": "sample of patients"}
MEAN_OVER_FOLDS = (
    "The 95 % interval of a method's own mean AUC is from the same corrected t-distribution."
)
UNTESTED = "The order is that of the AUCs alone; places next to each other may be chance."
ONLY_FOLDS = "With {folds} folds only very large differences can be shown; most methods will not be told apart."
ONE_SEED = "One seed: how much another training of the same method would differ is not known."
SEEDS = "± mixes folds and seeds; the standard deviation over seeds within a fold stands apart."
NO_DIAGRAM = (
    "No critical-difference diagram: it ranks methods over independent data sets and needs at least {least}; there "
    "{are} {found}. Labels or folds of one data set are not independent and cannot stand in for them. The pairwise "
    "matrix and the rank intervals say what the data can."
)
OVER_DATA_SETS = (
    "The axis is the mean rank over data sets, 1 is best. Bars join methods of which no two could be told apart by "
    "Wilcoxon's signed-rank test of their AUCs over data sets, corrected by Holm for all pairs. With few data sets and many "
    "methods nothing can reach significance: six data sets give p = 0.031 at best, before correction."
)

# --- beside published numbers

PLACES = {
    "below": "Below: a short training or a fault; no better method is shown by beating it.",
    "within": "Within: as a correct implementation should.",
    "suspiciously above": (
        "Suspiciously above: look for test patients in training, another split or other labels before believing it."
    ),
}
REPRODUCED = {
    True: "It lies in our 95 % interval.",
    False: "Not reproduced: it lies outside our 95 % interval.",
    None: "Whether it is reproduced cannot be said.",
}

# --- marks of a row

MARKS = {
    "incomplete": "incomplete: not all folds of the split are there, so the row is not ranked or only for now",
    "other images": "other images: tested on other images or labels than most rows, so not ranked",
    "dirty": "dirty: made by code with uncommitted changes, or of no known commit",
    "open recipe": "open recipe: settings differ from the preset's, so its budget may not be that of other rows",
    "phantom": "phantom: drawn films, no statement about patients",
    "partial data": "partial data: some images of the data set were not there; not comparable with the whole",
    "pretraining unknown": (
        "pretraining unknown: initial weights from a file; what they were trained on, test patients perhaps, is not known"
    ),
    "halved": (
        "halved: memory was short, so a training went on with micro-batches halved and the images of a step kept; batch "
        "norm saw other batches"
    ),
    "overlap": "overlap: images are known to be in the training and the test data",
    "at the floor": "at the floor: the interval reaches down to what a constant classifier gets",
}

# --- of a row by itself, in reports

MEANS = (
    "AUC, PR-AUC (average precision) and precision at 95 % recall (P@95R) are macro means over the labels with both "
    "classes in the test part. P@95R picks its threshold on the test part; the validation part's threshold, and the "
    "recall that it then reached, stand beside it."
)
BOOTSTRAP = "Intervals of single runs: percentiles of {replicates:,} resamples of whole patients, {level:g} %."
OVER_RUNS = "± is the standard deviation over {runs} runs (folds and seeds)."
BY_PATIENT = "Parts are disjoint by patient: a split assigns patients, never images, so a patient in two parts cannot be written."
ON_VALIDATION = "The epoch is chosen on the validation part; test images have no say in a training."
ONE_MODEL = "No ensemble: each fold and seed has one model, scored by itself."
EARLIER = "Images and labels had been collected before any training."
NOT_A_DEVICE = (
    "Research software. This model is not a medical device: it must not be used to diagnose, to triage or to treat, nor "
    "to judge readers, and no regulator has seen it."
)

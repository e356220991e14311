"""TRIPOD+AI: 27 items in 52 parts on studies of prediction models, in short words of our own.

Numbers are those of the statement of 2024; the official document leads: Collins et al., BMJ 2024;385:e078378,
doi 10.1136/bmj-2023-078378.
"""

from cxrbench.leaderboard.report import data_facts as data
from cxrbench.leaderboard.report import model_facts as model
from cxrbench.leaderboard.report.items import Guideline, Item

TRIPOD = Guideline(
    "TRIPOD+AI",
    "Collins et al., BMJ 2024;385:e078378, doi 10.1136/bmj-2023-078378",
    {
        "Title and abstract": [
            Item("1", "Title", "Does the title name development or evaluation, population and outcome?"),
            Item("2", "Abstract", "Does the abstract keep the TRIPOD+AI list for abstracts?"),
        ],
        "Introduction": [
            Item("3a", "Health context", "Which diagnosis, which rationale, which models before?"),
            Item("3b", "Population and users", "For whom is it meant, and who would use it?", (model.use,), "Whom would it serve, at which point of care?"),
            Item("3c", "Known inequalities", "Which inequalities of health between groups are known here?"),
            Item("4", "Objectives", "Development, evaluation or both?", (model.goal,)),
        ],
        "Methods": [
            Item("5a", "Sources of data", "Which data, why these, how representative?", (data.sources,), "Why these data, and whom do they represent?"),
            Item("5b", "Dates", "From when to when were data collected?"),
            Item("6a", "Setting", "In which care, how many centres, where?"),
            Item("6b", "Eligibility", "Who was eligible?", (data.excluded,), "By what criteria did the data set's makers choose patients?"),
            Item("6c", "Treatments", "Which treatments had they, if that matters?"),
            Item("7", "Preparation of data", "How were data cleaned and prepared, alike for all groups?", (data.preprocessing,), "Was quality checked alike in all groups of patients?"),
            Item("8a", "Outcome", "What is predicted, and how was it determined?", (data.label_policy, data.subsets), "How did the data set's makers determine it?"),
            Item("8b", "Assessors of the outcome", "Who judged the outcome, with what qualification?"),
            Item("8c", "Blinding for the outcome", "Was the outcome judged without knowing the predictors?"),
            Item("9a", "Choice of predictors", "Why these predictors?"),
            Item("9b", "Definition of predictors", "What goes into the model, and how is it measured?", (data.preprocessing,), "How were the films acquired?"),
            Item("9c", "Assessors of predictors", "Is a predictor a judgement, and whose?"),
            Item("10", "Sample size", "How was the size decided, for training and for test?", (data.counts,), "Why is this size enough?"),
            Item("11", "Missing data", "How were they handled?", (data.missing,)),
            Item("12a", "Use of data", "Which data trained, which evaluated?", (data.partition, data.level)),
            Item("12b", "Handling of predictors", "How are inputs scaled and transformed?", (data.preprocessing,), "How are grey values scaled before the network?"),
            Item("12c", "Model and its building", "Which model, tuned and validated how?", (model.model, model.training, model.selection), "Why this model, and how were its settings tuned?"),
            Item("12d", "Differences between clusters", "How were differences between hospitals or countries handled?"),
            Item("12e", "Measures of performance", "Which measures of discrimination, calibration and use?", (model.metrics, model.uncertainty)),
            Item("12f", "Updating", "Was a model updated or recalibrated?"),
            Item("12g", "Computing predictions", "How were predictions computed for the evaluation?", (model.protocol, model.ensembling)),
            Item("13", "Class imbalance", "Was imbalance treated, and were predictions recalibrated then?", (model.training,), "Say of the sampler and loss above whether they treat imbalance."),
            Item("14", "Fairness", "What was done for fairness between groups?", (model.fairness,), "Why these groups, and was anything done about differences?"),
            Item("15", "Output", "What does the model give; which thresholds, and why?", (model.metrics, model.selection), "Which threshold would be used, and why?"),
            Item("16", "Training against evaluation data", "How do the two differ in setting, eligibility, outcome, predictors?", (model.external,), "How do the two sources differ?"),
            Item("17", "Ethics", "Which board approved it, or why was none needed?"),
        ],
        "Open science": [
            Item("18a", "Funding", "Who paid, and what role had they?"),
            Item("18b", "Conflicts of interest", "Which interests have the authors?"),
            Item("18c", "Protocol", "Where is the protocol?", (model.protocol,), "Was a protocol of the study written beforehand, and where is it?"),
            Item("18d", "Registration", "Was the study registered?"),
            Item("18e", "Data", "Are data available?", (data.sources,)),
            Item("18f", "Code", "Is the code available?", (model.software,), "Where is this commit published?"),
        ],
        "Patients and public": [
            Item("19", "Involvement", "Were patients or the public involved, and how?"),
        ],
        "Results": [
            Item("20a", "Flow of participants", "How many came in, how many had the outcome?", (data.counts, data.excluded)),
            Item("20b", "Characteristics", "Who are they, overall and by source?", (data.characteristics,), "The same for training data, and clinical characteristics."),
            Item("20c", "Comparison of the two data sets", "How do training and evaluation data differ in important predictors?"),
            Item("21", "Participants and events", "How many participants and events in each analysis?", (data.counts, data.test_size)),
            Item("22", "Full model", "Can others compute predictions with it?", (model.availability,), "Where are the trained weights published?"),
            Item("23a", "Performance", "What is it, with intervals, and in groups?", (model.results, model.calibration, model.fairness)),
            Item("23b", "Differences between clusters", "How does performance differ between hospitals or countries?"),
            Item("24", "Updated model", "What came of an update?"),
        ],
        "Discussion": [
            Item("25", "Interpretation", "What do the results mean beside earlier work, fairness included?", (model.paper,), "What do they mean?"),
            Item("26", "Limitations", "What limits the study?", (model.limitations,), "Which biases of data and labels are known besides?"),
            Item("27a", "Poor or missing inputs", "What is done with bad or missing images in use?"),
            Item("27b", "User and expertise", "Must users do something, and what must they know?"),
            Item("27c", "Next steps", "What is next, and where would it hold?"),
        ],
    },
)  # fmt: skip

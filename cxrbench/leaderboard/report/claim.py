"""CLAIM 2024: 44 items of the Checklist for Artificial Intelligence in Medical Imaging, in short words of our own.

Numbers are those of the 2024 update; the official document leads: Tejani et al., Radiology: Artificial
Intelligence 2024;6(4):e240300, doi 10.1148/ryai.240300.
"""

from cxrbench.leaderboard.report import data_facts as data
from cxrbench.leaderboard.report import model_facts as model
from cxrbench.leaderboard.report.items import Guideline, Item

CLAIM = Guideline(
    "CLAIM 2024",
    "Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, doi 10.1148/ryai.240300",
    {
        "Title and abstract": [
            Item("1", "AI named in the title", "Do title or abstract say that the study is about AI, and of which kind?"),
            Item("2", "Abstract", "Is there a structured summary of design, methods, results and conclusions?"),
        ],
        "Introduction": [
            Item("3", "Background", "Which clinical question is it about, and what role would the model have?"),
            Item("4", "Aims", "What are the aims and hypotheses?", (model.goal,), "Which hypotheses were stated beforehand?"),
        ],
        "Methods: design": [
            Item("5", "Prospective or retrospective", "Were data collected for this study, or before it?", (data.design,), "Were they collected for this study (prospective) or for other ends (retrospective)?"),
            Item("6", "Goal of the study", "What is the study to show?", (model.goal,), "Is it feasibility, development, or proof of a benefit?"),
        ],
        "Methods: data": [
            Item("7", "Sources of data", "Where do the images come from?", (data.sources,), "Which hospitals, countries and years?"),
            Item("8", "Inclusion and exclusion", "Who was included and excluded, and why?", (data.excluded,), "By what criteria did the data set's makers choose patients?"),
            Item("9", "Preprocessing", "How were images prepared?", (data.preprocessing,), "How are grey values scaled before the network?"),
            Item("10", "Subsets", "Was a part of images or labels chosen, and how?", (data.subsets,)),
            Item("11", "De-identification", "How were the data de-identified, and by whom?"),
            Item("12", "Missing data", "How were missing data handled?", (data.missing,)),
            Item("13", "Image acquisition", "Which devices and settings made the images?"),
        ],
        "Methods: reference standard": [
            Item("14", "Definition", "How was the reference standard obtained?", (data.label_policy,), "How did its makers obtain the labels (reports, readers, tests)?"),
            Item("15", "Rationale", "Why this reference standard, and what are its known errors?"),
            Item("16", "Source of annotations", "Who annotated, with what training?"),
            Item("17", "Annotation of the test set", "Was the test part annotated in another way than the training part?"),
            Item("18", "Variability of readers", "How far did readers agree with each other and with themselves?"),
        ],
        "Methods: partitions": [
            Item("19", "Assignment to partitions", "How were data cut into parts?", (data.partition, data.counts)),
            Item("20", "Level of disjointness", "At which level (image, study, patient, institution) are parts disjoint?", (data.level,)),
        ],
        "Methods: test data": [
            Item("21", "Intended sample size", "How was the size of the test set decided?", (data.test_size,), "Why is this size enough?"),
        ],
        "Methods: model": [
            Item("22", "Description of the model", "Which network, inputs and outputs?", (model.model,), "A table or figure of the layers, where the cited paper is not enough."),
            Item("23", "Software", "Which libraries and versions?", (model.software,)),
            Item("24", "Initial parameters", "From which weights did training start?", (model.weights,)),
            Item("25", "Training", "How was it trained: augmentation, optimiser, schedule, loss?", (model.training, model.hardware), "Which loss?"),
            Item("26", "Choice of the final model", "How was the final model chosen?", (model.selection,)),
            Item("27", "Ensembling", "Are several models combined?", (model.ensembling,)),
        ],
        "Methods: evaluation": [
            Item("28", "Metrics", "Which measures of performance, and why?", (model.metrics,)),
            Item("29", "Uncertainty and significance", "How were intervals and tests computed?", (model.uncertainty,)),
            Item("30", "Robustness", "How far do results depend on choices and on image quality?", (model.analyses,), "Which of these are analyses of robustness, and what do they show?"),
            Item("31", "Explainability", "Was the model explained, and was the explanation checked?"),
            Item("32", "Evaluation on internal data", "How was it evaluated on data of the same source?", (data.test_size, model.selection)),
            Item("33", "Testing on external data", "Was it tested on data of another source?", (model.external,)),
            Item("34", "Registration of a trial", "Is there a trial registration, or why is none needed?"),
        ],
        "Results: data": [
            Item("35", "Numbers included and excluded", "How many patients and images were included and excluded?", (data.counts, data.excluded)),
            Item("36", "Characteristics by partition", "Who are the patients of each part?", (data.characteristics,), "The same for the training and validation parts, and clinical characteristics."),
        ],
        "Results: model": [
            Item("37", "Performance", "What is the performance on all partitions, with its uncertainty?", (model.results, model.calibration)),
            Item("38", "Diagnostic accuracy and its precision", "What are the estimates with 95 % intervals?", (model.accuracy,)),
            Item("39", "Failures", "Which cases does it get wrong, and why?", (model.fairness,), "Which single cases fail, and what do they have in common?"),
        ],
        "Discussion": [
            Item("40", "Limitations", "What limits the study?", (model.limitations,), "Which biases of data and labels are known besides?"),
            Item("41", "Implications and intended use", "What follows for practice?", (model.use,), "What would the clinical role be, and what is needed before?"),
        ],
        "Other information": [
            Item("42", "Protocol", "Where are protocol and technical details?", (model.protocol,)),
            Item("43", "Availability", "Where are software, model and data?", (model.availability,), "Where are the trained weights published?"),
            Item("44", "Funding", "Who paid, and what role had they?"),
        ],
    },
)  # fmt: skip

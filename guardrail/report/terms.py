"""The words of a report, explained for readers who are no specialists."""

from __future__ import annotations

TERMS = (
    (
        "Score",
        "Where an input lies between harmless and harmful text, as the model itself represents it: "
        "0 is the middle of the harmless text prompts of the fit, 1 that of the harmful ones.",
    ),
    (
        "Threshold",
        "A score above it is acted on. Each modality has two: one for steering, one for flagging.",
    ),
    ("Pass", "The guard changes nothing: the model answers as it would without the guard."),
    (
        "Steer",
        "The guard adds the refusal direction inside the model, which makes a refusal in the "
        "model's own words more likely. The model may still answer.",
    ),
    ("Flag", "The guard stops the request after its first step and answers in the model's place."),
    (
        "AUROC",
        "The chance that a random harmful input scores higher than a random harmless one: 0.5 is "
        "no better than a coin, 1 is perfect. It depends on no threshold.",
    ),
    (
        "Average precision (AP)",
        "The share of harmful inputs among those above a threshold, averaged over the thresholds "
        "that catch one more of them. It depends on the mix: compare it with the harmful share.",
    ),
    (
        "TPR at 5 % FPR",
        "The share of harmful inputs caught (true positive rate) where the threshold is set so "
        "that at most 5 % of these harmless inputs are hit (false positive rate).",
    ),
    (
        "95 % interval",
        "What the figure may really be, given how few inputs it rests on. The fewer the inputs, "
        "the wider the interval. It says nothing of inputs of another kind.",
    ),
    ("n", "The number of inputs that a figure rests on."),
    (
        "Modality",
        "The richest part of an input: text, image if it holds at least one picture, or video. The "
        "score of a long video is the highest of its windows, groups of frames judged together.",
    ),
    (
        "Control",
        "A simpler explanation put to the same test. A guard that does no better than its controls "
        "has shown nothing of its own.",
    ),
    (
        "Induced refusal",
        "The share of harmful prompts that the model refuses once it is steered.",
    ),
    ("False refusal", "The share of harmless inputs that are refused."),
    (
        "KL divergence",
        "How much the guard changes the model's choice of its first word, in nats: 0 is no change.",
    ),
    (
        "Readout layer, edited layer",
        "The decoder layers at which the score is read and at which the direction is added.",
    ),
    (
        "Judge",
        "Whatever decided that an answer is a refusal. It errs, too; its own error is given.",
    ),
)

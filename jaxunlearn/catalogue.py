"""One row a method: what it reads, what it promises, whom to cite. Drives the contract tests and the README's table."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from jaxunlearn.closed_form.amnesiac import amnesiac
from jaxunlearn.closed_form.assd import assd
from jaxunlearn.closed_form.certified_newton_step import certified_newton_step
from jaxunlearn.closed_form.descent_to_delete import descent_to_delete
from jaxunlearn.closed_form.fisher_forgetting import fisher_forgetting
from jaxunlearn.closed_form.influence import influence
from jaxunlearn.closed_form.influence_removal import influence_removal
from jaxunlearn.closed_form.lcodec import lcodec
from jaxunlearn.closed_form.lfssd import lfssd
from jaxunlearn.closed_form.newton import newton
from jaxunlearn.closed_form.newton_removal import newton_removal
from jaxunlearn.closed_form.ntk_forgetting import ntk_forgetting
from jaxunlearn.closed_form.output_perturbation import output_perturbation
from jaxunlearn.closed_form.projective_residual import projective_residual
from jaxunlearn.closed_form.ssd import ssd
from jaxunlearn.closed_form.woodbury_removal import woodbury_removal
from jaxunlearn.closed_form.woodfisher import woodfisher
from jaxunlearn.exact.refit import refit
from jaxunlearn.exact.retrain import retrain
from jaxunlearn.objective.bad_teacher import bad_teacher
from jaxunlearn.objective.cf_k import cf_k
from jaxunlearn.objective.eu_k import eu_k
from jaxunlearn.objective.finetune import finetune
from jaxunlearn.objective.gradient_ascent import gradient_ascent
from jaxunlearn.objective.gradient_difference import gradient_difference
from jaxunlearn.objective.l1_sparse import l1_sparse
from jaxunlearn.objective.npo import npo
from jaxunlearn.objective.oracle_matching import oracle_matching
from jaxunlearn.objective.random_label import random_label
from jaxunlearn.objective.salun import salun
from jaxunlearn.objective.scrub import scrub
from jaxunlearn.objective.task_vector import task_vector
from jaxunlearn.objective.unsir import unsir
from jaxunlearn.representation.affine_representation_unlearning import affine_representation_unlearning
from jaxunlearn.representation.attribute_unlearning import attribute_unlearning
from jaxunlearn.representation.concept_erasure import concept_erasure
from jaxunlearn.representation.contrastive_unlearning import contrastive_unlearning
from jaxunlearn.representation.dimensional_alignment import dimensional_alignment
from jaxunlearn.representation.nullspace_projection import nullspace_projection
from jaxunlearn.representation.prototype_erasure import prototype_erasure
from jaxunlearn.representation.representation_unlearning import representation_unlearning
from jaxunlearn.types import OnEmpty, UnlearnFn

Family: TypeAlias = Literal["exact", "objective", "closed_form", "representation", "generative", "rl"]
# forgotten rows or their labels alone, retained rows, Model.init, recorded updates of the training, a factorised Hessian, a
# curvature, importances or moments of features that were prepared on all rows
Reads: TypeAlias = Literal[
    "forget", "forget labels", "retain", "init", "updates", "factorisation", "curvature", "importances", "moments", "attributes"
]
Guarantee: TypeAlias = Literal["exact", "certified", "none"]


class Method(NamedTuple):
    """What a user must know before choosing a method."""

    factory: Callable[..., UnlearnFn]
    family: Family
    summary: str
    reads: frozenset[Reads]
    guarantee: Guarantee
    on_empty: OnEmpty
    bibtex: str


_GEORGIEV_2024 = """\
@article{georgiev2024attribute,
  title   = {Attribute-to-Delete: Machine Unlearning via Datamodel Matching},
  author  = {Georgiev, Kristian and Rinberg, Roy and Park, Sung Min and Garg, Shivam and Ilyas, Andrew and Madry, Aleksander
             and Neel, Seth},
  year    = {2024},
  eprint  = {2410.23232},
  archiveprefix = {arXiv}
}"""

_GUO_2020 = """\
@inproceedings{guo2020certified,
  title     = {Certified Data Removal from Machine Learning Models},
  author    = {Guo, Chuan and Goldstein, Tom and Hannun, Awni and van der Maaten, Laurens},
  booktitle = {International Conference on Machine Learning},
  year      = {2020},
  eprint    = {1911.03030},
  archiveprefix = {arXiv}
}"""

_KOH_2017 = """\
@inproceedings{koh2017understanding,
  title     = {Understanding Black-box Predictions via Influence Functions},
  author    = {Koh, Pang Wei and Liang, Percy},
  booktitle = {International Conference on Machine Learning},
  year      = {2017},
  eprint    = {1703.04730},
  archiveprefix = {arXiv}
}"""

_NEEL_2021 = """\
@inproceedings{neel2021descent,
  title     = {Descent-to-Delete: Gradient-Based Methods for Machine Unlearning},
  author    = {Neel, Seth and Roth, Aaron and Sharifi-Malvajerdi, Saeed},
  booktitle = {Algorithmic Learning Theory},
  year      = {2021},
  eprint    = {2007.02923},
  archiveprefix = {arXiv}
}"""

_KURMANJI_2023 = """\
@inproceedings{kurmanji2023towards,
  title     = {Towards Unbounded Machine Unlearning},
  author    = {Kurmanji, Meghdad and Triantafillou, Peter and Hayes, Jamie and Triantafillou, Eleni},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2302.09880},
  archiveprefix = {arXiv}
}"""

_GOLATKAR_2020 = """\
@inproceedings{golatkar2020eternal,
  title     = {Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks},
  author    = {Golatkar, Aditya and Achille, Alessandro and Soatto, Stefano},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020},
  eprint    = {1911.04933},
  archiveprefix = {arXiv}
}"""

_GRAVES_2021 = """\
@inproceedings{graves2021amnesiac,
  title     = {Amnesiac Machine Learning},
  author    = {Graves, Laura and Nagisetty, Vineel and Ganesh, Vijay},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2021},
  eprint    = {2010.10981},
  archiveprefix = {arXiv}
}"""

_ZHANG_DONG_2024 = """\
@inproceedings{zhang2024towards,
  title     = {Towards Certified Unlearning for Deep Neural Networks},
  author    = {Zhang, Binchi and Dong, Yushun and Wang, Tianhao and Li, Jundong},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  eprint    = {2408.00920},
  archiveprefix = {arXiv}
}"""

_GOLATKAR_NTK_2020 = """\
@inproceedings{golatkar2020forgetting,
  title     = {Forgetting Outside the Box: Scrubbing Deep Networks of Information Accessible from Input-Output Observations},
  author    = {Golatkar, Aditya and Achille, Alessandro and Soatto, Stefano},
  booktitle = {European Conference on Computer Vision},
  year      = {2020},
  eprint    = {2003.02960},
  archiveprefix = {arXiv}
}"""

_FOSTER_2024 = """\
@inproceedings{foster2024fast,
  title     = {Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening},
  author    = {Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2024},
  eprint    = {2308.07707},
  archiveprefix = {arXiv}
}"""

_FOSTER_LOSS_FREE_2024 = """\
@article{foster2024loss,
  title     = {Loss-Free Machine Unlearning},
  author    = {Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},
  journal = {ICLR Tiny Papers},
  year      = {2024},
  eprint    = {2402.19308},
  archiveprefix = {arXiv}
}"""

_SCHOEPF_2024 = """\
@article{schoepf2024parameter,
  title     = {Parameter-Tuning-Free Data Entry Error Unlearning with Adaptive Selective Synaptic Dampening},
  author    = {Schoepf, Stefan and Foster, Jack and Brintrup, Alexandra},
  year      = {2024},
  eprint    = {2402.10098},
  archiveprefix = {arXiv}
}"""

_FAN_2024 = """\
@inproceedings{fan2024salun,
  title     = {SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
             and Generation},
  author    = {Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  eprint    = {2310.12508},
  archiveprefix = {arXiv}
}"""

_IZZO_2021 = """\
@inproceedings{izzo2021approximate,
  title     = {Approximate Data Deletion from Machine Learning Models},
  author    = {Izzo, Zachary and Smart, Mary Anne and Chaudhuri, Kamalika and Zou, James},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2021},
  eprint    = {2002.10077},
  archiveprefix = {arXiv}
}"""

_CAO_2015 = """\
@inproceedings{cao2015towards,
  title     = {Towards Making Systems Forget with Machine Unlearning},
  author    = {Cao, Yinzhi and Yang, Junfeng},
  booktitle = {IEEE Symposium on Security and Privacy},
  year      = {2015},
  doi       = {10.1109/SP.2015.35}
}"""

_GOEL_2022 = """\
@misc{goel2022towards,
  title     = {Towards Adversarial Evaluations for Inexact Machine Unlearning},
  author    = {Goel, Shashwat and Prabhu, Ameya and Sanyal, Amartya and Lim, Ser-Nam and Torr, Philip and
               Kumaraguru, Ponnurangam},
  year      = {2022},
  eprint    = {2201.06640},
  archiveprefix = {arXiv}
}"""

_JIA_2023 = """\
@inproceedings{jia2023model,
  title     = {Model Sparsity Can Simplify Machine Unlearning},
  author    = {Jia, Jinghan and Liu, Jiancheng and Ram, Parikshit and Yao, Yuguang and Liu, Gaowen and Liu, Yang and
               Sharma, Pranay and Liu, Sijia},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2304.04934},
  archiveprefix = {arXiv}
}"""

_CHUNDAWAT_2023 = """\
@inproceedings{chundawat2023can,
  title     = {Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an Incompetent Teacher},
  author    = {Chundawat, Vikram S. and Tarun, Ayush K. and Mandal, Murari and Kankanhalli, Mohan},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2023},
  eprint    = {2205.08096},
  archiveprefix = {arXiv}
}"""

_TARUN_2023 = """\
@article{tarun2023fast,
  title     = {Fast Yet Effective Machine Unlearning},
  author    = {Tarun, Ayush K. and Chundawat, Vikram S. and Mandal, Murari and Kankanhalli, Mohan},
  journal   = {IEEE Transactions on Neural Networks and Learning Systems},
  year      = {2023},
  eprint    = {2111.08947},
  archiveprefix = {arXiv}
}"""

_ZHANG_2024 = """\
@inproceedings{zhang2024negative,
  title     = {Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning},
  author    = {Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song},
  booktitle = {Conference on Language Modeling},
  year      = {2024},
  eprint    = {2404.05868},
  archiveprefix = {arXiv}
}"""

_ILHARCO_2023 = """\
@inproceedings{ilharco2023editing,
  title     = {Editing Models with Task Arithmetic},
  author    = {Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and
               Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  eprint    = {2212.04089},
  archiveprefix = {arXiv}
}"""

_CHAUDHURI_2011 = """\
@article{chaudhuri2011differentially,
  title     = {Differentially Private Empirical Risk Minimization},
  author    = {Chaudhuri, Kamalika and Monteleoni, Claire and Sarwate, Anand D.},
  journal   = {Journal of Machine Learning Research},
  volume    = {12},
  year      = {2011},
  eprint    = {0912.0071},
  archiveprefix = {arXiv}
}"""

_ALMUDEVAR_2026 = """\
@article{almudevar2026representation,
  title   = {Representation Unlearning: Forgetting through Information Compression},
  author  = {Almud{\\'e}var, Antonio and Ortega, Alfonso},
  year    = {2026},
  eprint  = {2601.21564},
  archiveprefix = {arXiv}
}"""

_BELROSE_2023 = """\
@inproceedings{belrose2023leace,
  title     = {{LEACE}: Perfect Linear Concept Erasure in Closed Form},
  author    = {Belrose, Nora and Schneider-Joseph, David and Ravfogel, Shauli and Cotterell, Ryan and Raff, Edward and
               Biderman, Stella},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2306.03819},
  archiveprefix = {arXiv}
}"""

_RAVFOGEL_2020 = """\
@inproceedings{ravfogel2020null,
  title     = {Null It Out: Guarding Protected Attributes by Iterative Nullspace Projection},
  author    = {Ravfogel, Shauli and Elazar, Yanai and Gonen, Hila and Twiton, Michael and Goldberg, Yoav},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year      = {2020},
  eprint    = {2004.07667},
  archiveprefix = {arXiv}
}"""

_HAGHIGHATKHAH_2022 = """\
@inproceedings{haghighatkhah2022better,
  title     = {Better Hit the Nail on the Head than Beat around the Bush: Removing Protected Attributes with a Single
               Projection},
  author    = {Haghighatkhah, Pantea and Fokkens, Antske and Sommerauer, Pia and Speckmann, Bettina and Verbeek, Kevin},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year      = {2022},
  eprint    = {2212.04273},
  archiveprefix = {arXiv}
}"""

_LEE_2025 = """\
@inproceedings{lee2025contrastive,
  title     = {Contrastive Unlearning: A Contrastive Approach to Machine Unlearning},
  author    = {Lee, Hong kyu and Zhang, Qiuchen and Yang, Carl and Lou, Jian and Xiong, Li},
  booktitle = {International Joint Conference on Artificial Intelligence},
  year      = {2025},
  eprint    = {2401.10458},
  archiveprefix = {arXiv}
}"""

_SEO_2025 = """\
@inproceedings{seo2025revisiting,
  title     = {Revisiting Machine Unlearning with Dimensional Alignment},
  author    = {Seo, Seonguk and Kim, Dongwan and Han, Bohyung},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2025},
  eprint    = {2407.17710},
  archiveprefix = {arXiv}
}"""

_GUO_2022 = """\
@article{guo2022efficient,
  title   = {Efficient Attribute Unlearning: Towards Selective Removal of Input Attributes from Feature Representations},
  author  = {Guo, Tao and Guo, Song and Zhang, Jiewei and Xu, Wenchao and Wang, Junxiao},
  journal = {arXiv preprint arXiv:2202.13295},
  year    = {2022}
}"""

_MEHTA_2022 = """\
@inproceedings{mehta2022deep,
  title     = {Deep Unlearning via Randomized Conditionally Independent {Hessians}},
  author    = {Mehta, Ronak and Pal, Sourav and Singh, Vikas and Ravi, Sathya N.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  eprint    = {2204.07655},
  archiveprefix = {arXiv}
}"""

METHODS: dict[str, Method] = {
    "retrain": Method(
        retrain, "exact", "fresh weights, trained without the rows", frozenset({"retain", "init"}), "exact", "train", _CAO_2015
    ),
    "finetune": Method(
        finetune, "objective", "keep training on the retained rows", frozenset({"retain"}), "none", "finetune", _GOLATKAR_2020
    ),
    "cf_k": Method(
        cf_k,
        "objective",
        "keep training the last layers on the retained rows",
        frozenset({"retain"}),
        "none",
        "finetune",
        _GOEL_2022,
    ),
    "eu_k": Method(
        eu_k,
        "objective",
        "retrain the last layers, keep the features",
        frozenset({"retain", "init"}),
        "none",
        "train",
        _GOEL_2022,
    ),
    "l1_sparse": Method(
        l1_sparse,
        "objective",
        "keep training on the retained rows under a fading L1 penalty",
        frozenset({"retain"}),
        "none",
        "finetune",
        _JIA_2023,
    ),
    "gradient_ascent": Method(
        gradient_ascent,
        "objective",
        "climb the loss of the forgotten rows",
        frozenset({"forget"}),
        "none",
        "identity",
        _GRAVES_2021,
    ),
    "gradient_difference": Method(
        gradient_difference,
        "objective",
        "descend on retained, climb on forgotten rows (NegGrad+)",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _KURMANJI_2023,
    ),
    "npo": Method(
        npo,
        "objective",
        "climb on each forgotten row until it is unlikely, descend on retained ones",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _ZHANG_2024,
    ),
    "random_label": Method(
        random_label,
        "objective",
        "learn wrong labels for the forgotten rows",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _GOLATKAR_2020,
    ),
    "bad_teacher": Method(
        bad_teacher,
        "objective",
        "copy a random model on forgotten rows, the trained one on retained ones",
        frozenset({"forget", "retain", "init"}),
        "none",
        "identity",
        _CHUNDAWAT_2023,
    ),
    "oracle_matching": Method(
        oracle_matching,
        "objective",
        "match the mean outputs of a few retrained models (a yardstick; reconstruction)",
        frozenset({"forget", "retain", "init"}),
        "none",
        "identity",
        _GEORGIEV_2024,
    ),
    "scrub": Method(
        scrub,
        "objective",
        "leave the teacher on forgotten rows, follow it on retained ones",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _KURMANJI_2023,
    ),
    "unsir": Method(
        unsir,
        "objective",
        "train on noise under the forgotten labels, then repair (whole classes)",
        frozenset({"forget labels", "retain"}),
        "none",
        "identity",
        _TARUN_2023,
    ),
    "task_vector": Method(
        task_vector,
        "objective",
        "subtract what fine-tuning on the forgotten rows adds",
        frozenset({"forget"}),
        "none",
        "identity",
        _ILHARCO_2023,
    ),
    "amnesiac": Method(
        amnesiac,
        "closed_form",
        "subtract the recorded updates of batches with forgotten rows",
        frozenset({"updates"}),
        "none",
        "identity",
        _GRAVES_2021,
    ),
    "output_perturbation": Method(
        output_perturbation,
        "closed_form",
        "add Gaussian noise to the weights",
        frozenset(),
        "none",
        "identity",
        _CHAUDHURI_2011,
    ),
    "refit": Method(
        refit,
        "exact",
        "train a convex problem afresh, to machine precision",
        frozenset({"retain"}),
        "exact",
        "train",
        _GUO_2020,
    ),
    "newton_removal": Method(
        newton_removal,
        "closed_form",
        "Newton steps on the retained rows of a convex problem, with an exact residual",
        frozenset({"retain"}),
        "certified",
        "identity",
        _GUO_2020,
    ),
    "woodbury_removal": Method(
        woodbury_removal,
        "closed_form",
        "the same for many requests against one factorisation",
        frozenset({"forget", "retain", "factorisation"}),
        "certified",
        "identity",
        _GUO_2020,
    ),
    "descent_to_delete": Method(
        descent_to_delete,
        "closed_form",
        "gradient steps on the retained rows of a convex problem",
        frozenset({"retain"}),
        "certified",
        "identity",
        _NEEL_2021,
    ),
    "influence_removal": Method(
        influence_removal,
        "closed_form",
        "one influence-function step of a convex problem, to compare with",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _KOH_2017,
    ),
    "influence": Method(
        influence,
        "closed_form",
        "influence functions of the forgotten rows, with any curvature",
        frozenset({"forget", "curvature"}),
        "none",
        "identity",
        _KOH_2017,
    ),
    "newton": Method(
        newton,
        "closed_form",
        "a damped Newton step on the retained rows, with any curvature",
        frozenset({"forget", "retain", "curvature"}),
        "none",
        "identity",
        _GUO_2020,
    ),
    "certified_newton_step": Method(
        certified_newton_step,
        "closed_form",
        "the step of a certificate that cannot be checked; it gives none",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _ZHANG_DONG_2024,
    ),
    "woodfisher": Method(
        woodfisher,
        "closed_form",
        "influence with the empirical Fisher matrix, inverted as written",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _JIA_2023,
    ),
    "lcodec": Method(
        lcodec,
        "closed_form",
        "an influence step on the units that the loss depends on (low value)",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _MEHTA_2022,
    ),
    "projective_residual": Method(
        projective_residual,
        "closed_form",
        "Newton's removal, projected onto the forgotten rows (convex)",
        frozenset({"forget", "retain", "factorisation"}),
        "none",
        "identity",
        _IZZO_2021,
    ),
    "ntk_forgetting": Method(
        ntk_forgetting,
        "closed_form",
        "difference of two ridge solutions of the linearised model",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _GOLATKAR_NTK_2020,
    ),
    "fisher_forgetting": Method(
        fisher_forgetting,
        "closed_form",
        "noise where the retained rows do not mind",
        frozenset({"forget", "curvature"}),
        "none",
        "identity",
        _GOLATKAR_2020,
    ),
    "ssd": Method(
        ssd,
        "closed_form",
        "dampen weights that matter more to the forgotten rows than to all",
        frozenset({"forget", "importances"}),
        "none",
        "identity",
        _FOSTER_2024,
    ),
    "lfssd": Method(
        lfssd,
        "closed_form",
        "the same from the logits alone, without labels",
        frozenset({"forget", "importances"}),
        "none",
        "identity",
        _FOSTER_LOSS_FREE_2024,
    ),
    "assd": Method(
        assd,
        "closed_form",
        "the same, with a threshold from the size of the request (reconstruction)",
        frozenset({"forget", "importances"}),
        "none",
        "identity",
        _SCHOEPF_2024,
    ),
    "salun": Method(
        salun,
        "objective",
        "learn wrong labels with the weights the forgotten rows hang on",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _FAN_2024,
    ),
    "representation_unlearning": Method(
        representation_unlearning,
        "representation",
        "learn a map in front of the head that keeps retained features and merges forgotten ones",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _ALMUDEVAR_2026,
    ),
    "affine_representation_unlearning": Method(
        affine_representation_unlearning,
        "representation",
        "the best affine map for the same, in closed form",
        frozenset({"forget", "moments"}),
        "none",
        "identity",
        _ALMUDEVAR_2026,
    ),
    "concept_erasure": Method(
        concept_erasure,
        "representation",
        "make a concept linearly unreadable in front of the head (LEACE)",
        frozenset({"forget", "moments"}),
        "none",
        "identity",
        _BELROSE_2023,
    ),
    "nullspace_projection": Method(
        nullspace_projection,
        "representation",
        "project onto what linear classifiers of a concept do not use (INLP)",
        frozenset({"forget", "moments"}),
        "none",
        "identity",
        _RAVFOGEL_2020,
    ),
    "prototype_erasure": Method(
        prototype_erasure,
        "representation",
        "move prototypes of forgotten classes onto the mean of the rest",
        frozenset({"forget", "moments"}),
        "none",
        "identity",
        _HAGHIGHATKHAH_2022,
    ),
    "contrastive_unlearning": Method(
        contrastive_unlearning,
        "representation",
        "move forgotten rows out of their class in feature space",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _LEE_2025,
    ),
    "dimensional_alignment": Method(
        dimensional_alignment,
        "representation",
        "move forgotten features into the space of the retained ones (reconstruction)",
        frozenset({"forget", "retain"}),
        "none",
        "identity",
        _SEO_2025,
    ),
    "attribute_unlearning": Method(
        attribute_unlearning,
        "representation",
        "forget an attribute of all rows: features lose it and keep the label (reconstruction)",
        frozenset({"retain", "attributes"}),
        "none",
        "identity",
        _GUO_2022,
    ),
}


def citation(*methods: str) -> None:
    """Print the BibTeX of what the named methods come from, each entry once; of all methods if none is named.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> jaxunlearn.citation("scrub")  # doctest: +ELLIPSIS
        @inproceedings{kurmanji2023towards,
        ...
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; there are {', '.join(METHODS)}")
    print("\n\n".join(dict.fromkeys(METHODS[name].bibtex for name in methods or METHODS)))


def markdown_table() -> str:
    """The README's table of methods."""
    rows = ["| method | what it does | reads | guarantee | empty request |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        reads = ", ".join(sorted(method.reads)) or "nothing"
        rows.append(f"| `{name}` | {method.summary} | {reads} | {method.guarantee} | {method.on_empty} |")
    return "\n".join(rows)

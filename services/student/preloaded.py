"""What the fork server imports, so that no worker has to: everything that recipes import."""

import peft  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

import services.student.classifier.recipe
import services.student.concept_recipe
import services.student.head_recipe
import services.student.language.recipe
import services.student.worker  # noqa: F401

from megatron_patch.train import optimizer as optim
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def test_weights_that_were_loaded_are_the_main_ones(alone):
    """After a step the fp32 weights are no bf16 numbers; after loading they are those of the file."""
    config = tiny_config(global_batch_size=1)
    state = build_state(config, alone, RunLog(config, active=False), 4)
    train_step(state, tiny_batches(0, 1))
    adam = optim.single(state.optimizer).optimizer
    assert adam.remainders
    for weight in state.model.parameters():
        weight.data.fill_(0.5)
    optim.weights_were_loaded(state.optimizer)
    assert all((adam.value_in_gradient(parameter) == 0.5).all() for parameter in adam.remainders)

"""Chinese of `cli/`, `launch.py` and `torchrun.py`."""

from __future__ import annotations

SENTENCES = {
    "  a process has started and imported in {} s, and joined the others in {} s": (
        "  进程启动和导入用时 {0} 秒，与其他进程会合用时 {1} 秒"
    ),
    "PYTHONPATH names {}, which holds another Megatron; it is left out.": "PYTHONPATH 中的 {0} 含有另一份 Megatron，已忽略。",
    "rank {} was the first of this node to end early, with status {}; what it said stands above.": (
        "rank {0} 是本节点最先退出的，退出码 {1}；它的说明见上文。"
    ),
    "stopped by {}.": "被 {0} 停止。",
    # session
    "rank {}: {}": "rank {0}：{1}",
    "a process that loads data has ended ({}). Killed, it took too much memory; a bus error means that shared memory is full (df -h "
    "/dev/shm; of a container --shm-size), or that a data file has become shorter or its disk fails.": (
        "读取数据的进程已退出（{0}）。若是被杀死，则它占用的内存过多；总线错误（bus error）表示共享内存已满"
        "（df -h /dev/shm；容器用 --shm-size），或数据文件变短了，或其磁盘出错。"
    ),
    "another rank has ended ({}).": "另一个 rank 已经退出（{0}）。",
    "BATCH_SIZE below {}": "BATCH_SIZE 小于 {0}",
    "a higher TP or PP, on more GPUs": "在更多 GPU 上增大 TP 或 PP",
    "{} What takes less: {}.": "{0} 可以减少显存的办法：{1}。",
    # convert
    "interrupted.": "已中断。",
    "Nothing was left at {}.": "{0} 处没有留下任何东西。",
    "{} is as it was.": "{0} 保持原样。",
    "What is at {} came there while this ran: look at it before you use it.": "{0} 处的内容是在运行期间出现的：使用前请先检查。",
    ", {} compared with the source": "（其中 {0} 个已与源比较）",
    "{} tensor": "{0} 个张量",
    "{} file": "{0} 个文件",
    "{}, {} in {}, {} s, {} MB/s, peak memory {} GiB.": "{0}，{1}，{2}，用时 {3} 秒，{4} MB/s，内存峰值 {5} GiB。",
    "Written: {}": "已写入：{0}",
    'Next: transformers.AutoModelForCausalLM.from_pretrained("{}")': '下一步：transformers.AutoModelForCausalLM.from_pretrained("{0}")',
    # inspection
    "error: {}": "错误：{0}",
    "{} does not exist; give a .bin/.idx pair, a fine-tuning JSON file, or the folder of a checkpoint or an adapter.": (
        "{0} 不存在；请给出一对 .bin/.idx、微调 JSON 文件，或检查点、适配器的文件夹。"
    ),
    # preprocess
    "{} sample": "{0} 条样本",
    "{} bad record": "{0} 条坏记录",
    "{} empty record": "{0} 条空记录",
    "{}: {} in {}, {} in {}; {} and {} gave none.": "{0}：{2} 中 {1}，{4} 中 {3}；{5}和{6}没有产生样本。",
    # evaluate, generate, serve
    "{} What takes less: fewer sequences at once (BATCH_SIZE, BS, --requests), shorter ones, or a higher TP on more GPUs.": (
        "{0} 以下可减少显存：减少同时处理的序列（BATCH_SIZE、BS、--requests）、缩短序列，或用更多 GPU 提高 TP。"
    ),
    "{} tokens in {} s, {} tokens/s.": "{0} 个 token，用时 {1} 秒，每秒 {2} 个 token。",
    "interrupted; the same command goes on behind the answers that are written.": "已中断；同一命令会接着已写出的回答继续。",
    "Serving {} on http://{}:{}/v1, up to {} tokens a request; Ctrl-C ends it.": (
        "{0} 已在 http://{1}:{2}/v1 提供服务，每个请求最多 {3} 个 token；Ctrl-C 结束。"
    ),
    "{} is not installed; run: pip install 'megatron-patch[serve]'": "没有安装 {0}；请运行：pip install 'megatron-patch[serve]'",
    # sinks: the live line, and trackers
    "iteration {}/{}": "迭代 {0}/{1}",
    "loss {}": "loss {0}",
    "{} tokens/s": "{0} tokens/s",
    "{} left": "剩余 {0}",
    "validation {}": "验证 {0}",
    "lr {}": "学习率 {0}",
    "validation at iteration {}: loss {}, perplexity {}": "迭代 {0} 的验证：loss {1}，困惑度 {2}",
    "{} s": "{0} 秒",
    "{} min {} s": "{0} 分 {1} 秒",
    "{} h {} min": "{0} 小时 {1} 分",
    "{} d {} h": "{0} 天 {1} 小时",
    "{} is not installed: run pip install 'megatron-patch[{}]', or remove the flag.": (
        "没有安装 {0}：请运行 pip install 'megatron-patch[{1}]'，或去掉这个参数。"
    ),
    "{} {}: {} cannot begin a run ({}); {}, or leave the flag out.": "{0} {1}：{2} 无法开始记录（{3}）；{4}，或去掉这个参数。",
    "run `wandb login`, or set WANDB_MODE=offline": "请运行 `wandb login`，或设置 WANDB_MODE=offline",
    "run `swanlab login`, or set SWANLAB_MODE=offline": "请运行 `swanlab login`，或设置 SWANLAB_MODE=offline",
    "look at MLFLOW_TRACKING_URI": "请检查 MLFLOW_TRACKING_URI",
    "{} cannot take up run {} ({}); training goes on without it.": "{0} 无法接续记录 {1}（{2}）；训练照常进行，不再记录到那里。",
    "{} does not take the run's numbers ({}); training goes on. It gets them later if it can.": (
        "{0} 没有收下本次运行的数据（{1}）；训练照常进行，之后能连上时会补发。"
    ),
    "{} has not answered for {} s and may lack the run's last numbers; TensorBoard's files have them.": (
        "{0} 已有 {1} 秒没有响应，可能缺少最后的数据；TensorBoard 的文件里是全的。"
    ),
    "{} lacks {} of the run's log lines; TensorBoard's files have them.": "{0} 缺 {1} 行日志的数据；TensorBoard 的文件里是全的。",
    "  {}: run {}, {}": "  {0}：记录 {1}，{2}",
    "  {}: going on with run {}, {}": "  {0}：接续记录 {1}，{2}",
}

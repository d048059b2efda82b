"""Chinese of `processes/`, of `torchrun.py`, and of the lock of a checkpoint folder."""

from __future__ import annotations

SENTENCES = {
    # run_lock, caretaker
    "{} is held by another run: process {} on {}, since {}. One run at a time writes there: wait for its end, stop it, or write "
    "another OUTPUT_BASEPATH.": (
        "{0} 正被另一次运行占用：主机 {2} 上的进程 {1}，始于 {3}。同一时间只能有一次运行写入：请等它结束、停止它，或换一个 OUTPUT_BASEPATH。"
    ),
    "{} It took the folder after this run had given no sign of life.": "{0} 本次运行曾长时间没有心跳，文件夹因此被它接管。",
    "process {} on {}, which cannot be seen from here, held the checkpoint folder; waiting up to {} s for a sign of life.": (
        "检查点文件夹曾由主机 {1} 上的进程 {0} 占用，从这里无法查看该进程；最多等待 {2} 秒，看它是否仍有心跳。"
    ),
    "{}: several runs are being started for this folder at the same time; start one.": "{0}：有多次运行同时为这个文件夹启动；请只启动一次。",
    "an unknown host": "未知主机",
    "an unknown time": "未知时间",
    "warning: the heartbeat of the checkpoint folder's lock cannot be written ({}).": "警告：无法写入检查点文件夹的锁心跳（{0}）。",
    # meeting, shared_folder
    "{} is '{}'; it must be node 0's host name or address alone, without blanks, slashes or a port.": (
        "{0} 的值是 '{1}'；它只能是节点 0 的主机名或地址，不含空格、斜杠或端口。"
    ),
    "node {} ({})": "节点 {0}（{1}）",
    "node {}": "节点 {0}",
    "nodes {}": "节点 {0}",
    "the name {} has no address ({})": "主机名 {0} 没有对应的地址（{1}）",
    "no answer": "没有应答",
    "node {} of {} waits for node 0 at {}:{}; for {} s: {}.": "节点 {0}（共 {1} 个）在 {2}:{3} 等待节点 0，已 {4} 秒：{5}。",
    "node {} of {} waits on {}:{}; {} {} not come for {} s.": "节点 {0}（共 {1} 个）在 {2}:{3} 等待；{4}{5:.0}已 {6} 秒没有到来。",
    "node {} of {} could not reach node 0 at {}:{} within {} min (--rendezvous-timeout-minutes): {}. Look whether node 0 runs, "
    "and whether MASTER_ADDR and MASTER_PORT are the same on all nodes.": (
        "节点 {0}（共 {1} 个）在 {4} 分钟内（--rendezvous-timeout-minutes）无法连上 {2}:{3} 的节点 0：{5}。"
        "请查看节点 0 是否在运行，各节点的 MASTER_ADDR 与 MASTER_PORT 是否相同。"
    ),
    "{} did not come to {}:{} within {} min (--rendezvous-timeout-minutes). Look whether they run, and whether MASTER_ADDR, "
    "MASTER_PORT and WORLD_SIZE are the same on all nodes.": (
        "{0}在 {3} 分钟内（--rendezvous-timeout-minutes）没有来到 {1}:{2}。"
        "请查看它们是否在运行，各节点的 MASTER_ADDR、MASTER_PORT 与 WORLD_SIZE 是否相同。"
    ),
    "two nodes say that they are number {} (RANK); each needs a number of its own.": "有两个节点的编号（RANK）都是 {0}；每个节点的编号必须不同。",
    "node {} was told of {} nodes (WORLD_SIZE), and node 0 of {}.": "节点 {0} 得到的节点数（WORLD_SIZE）是 {1}，而节点 0 得到的是 {2}。",
    "OUTPUT_BASEPATH {} is not one folder on all nodes: {} does not see what node 0 wrote there. A checkpoint would be torn in "
    "pieces: write a folder of a shared file system that every node mounts at the same place, or add --local-output true, with which "
    "each node keeps its own files.": (
        "OUTPUT_BASEPATH {0} 在各节点上不是同一个文件夹：{1}看不到节点 0 写在那里的内容。检查点会因此残缺不全："
        "请写一个共享文件系统上的文件夹，并在各节点挂载到相同位置；或加上 --local-output true，由每个节点保存自己的文件。"
    ),
    "--local-output true: OUTPUT_BASEPATH {} is no folder of each node's own, since {} sees there what another node wrote. Leave the "
    "flag out: on a shared disk all nodes write one folder.": (
        "--local-output true：OUTPUT_BASEPATH {0} 不是各节点自己的文件夹，{1}看得到其他节点写在那里的内容。"
        "请去掉该标志：在共享磁盘上，所有节点写同一个文件夹。"
    ),
    "{} is not the same on all nodes: {} has other bytes there than node 0.": "{0} 在各节点上不相同：{1}那里的内容与节点 0 的不一致。",
    # torchrun, restarts
    "MASTER_PORT {} is in use by another process of this node: write another one, the same on all nodes.": (
        "MASTER_PORT {0} 已被本节点的另一个进程占用：请换一个端口，各节点相同。"
    ),
    "node 0 cannot be spoken to at {}:{} ({}).": "无法在 {0}:{1} 与节点 0 通信（{2}）。",
    "None of several free TCP ports stayed free until torchrun listened; set MASTER_PORT to one that is.": (
        "试过的几个空闲 TCP 端口在 torchrun 监听之前都被占用；请把 MASTER_PORT 设为空闲端口。"
    ),
    "node {} lost node 0 at {}:{} before all nodes had come ({}).": "节点 {0} 在所有节点到齐之前失去了与 {1}:{2} 的节点 0 的连接（{3}）。",
    "what had not ended {} s after the signal (--exit-grace-seconds) was killed.": (
        "收到信号 {0} 秒后（--exit-grace-seconds）仍未结束的进程已被强行终止。"
    ),
    "a process has ended early; the run is started again from its last checkpoint ({} of {}, MAX_RESTARTS).": (
        "有进程提前结束；从最近的检查点重新启动（第 {0} 次，最多 {1} 次，MAX_RESTARTS）。"
    ),
    "node 0 cannot be reached, so the run is not started again.": "无法连上节点 0，因此不再重新启动。",
    "node {} has told nothing of its end, so the run is not started again.": "节点 {0} 没有报告它如何结束，因此不再重新启动。",
    "the run has failed twice behind iteration {}, so it is not started again: what is said above repeats itself.": (
        "运行已两次在第 {0} 次迭代之后失败，因此不再重新启动：上面的错误会重复出现。"
    ),
    "the run has failed twice before an iteration was done, so it is not started again: what is said above repeats itself.": (
        "运行已两次在完成任何一次迭代之前失败，因此不再重新启动：上面的错误会重复出现。"
    ),
    "the run was ended: {}": "运行已被结束：{0}",
    # notes
    "no folder for temporary files can be written: TMPDIR, /tmp, /var/tmp and /dev/shm were tried. Mount one of them writable, or "
    "set TMPDIR to a folder that is.": (
        "没有可写的临时文件夹：已试过 TMPDIR、/tmp、/var/tmp 和 /dev/shm。请把其中一个挂载为可写，或把 TMPDIR 设为可写的文件夹。"
    ),
    "warning: no folder for temporary files can be written; {} is used, which is memory.": (
        "警告：没有可写的临时文件夹；改用内存中的 {0}。"
    ),
    "warning: ranks cannot leave notes for torchrun ({}). So a failure that repeats itself is tried again up to MAX_RESTARTS times, "
    "a rank in which nothing runs any more is not ended, and the last line cannot say why a run was.": (
        "警告：各 rank 无法给 torchrun 留下记录（{0}）。因此重复出现的失败会重试至多 MAX_RESTARTS 次，完全停滞的 rank 不会被结束，"
        "最后一行也无法说明运行为何结束。"
    ),
    "warning: what ranks note for torchrun is not known or not complete ({}).": "警告：各 rank 给 torchrun 的记录未知或不完整（{0}）。",
    # standstill, place
    "rank {} (process {} on {})": "rank {0}（主机 {2} 上的进程 {1}）",
    "iteration {}, {}": "第 {0} 次迭代，{1}",
    "rank {} waits at {}.": "rank {0} 在等待，位置：{1}。",
    "{} has given no sign of life for {} min: it is stopped, it waits inside a library or for a file system, or its machine cannot "
    "be reached; it was at {}.": "{0} 已 {1} 分钟没有任何动静：它被暂停，在某个库里或在等待文件系统，或它的机器无法连通；最后位置：{2}。",
    "{} has stood still for {} min at {}, as all others have.": "{0} 已停滞 {1} 分钟，与其他所有 rank 一样，位置：{2}。",
    "{} has stood still for {} min at {}.": "{0} 已停滞 {1} 分钟，位置：{2}。",
    "still {}, for {} min.": "仍在{0}，已 {1} 分钟。",
    "waiting for a batch": "等待一个 batch",
    "working on a batch": "处理一个 batch",
    "rank {} has not reached node 0 for {} min: that one has ended or stands still, or the network between them is cut.": (
        "rank {0} 已 {1} 分钟无法连上节点 0：它已结束或停滞，或两者之间的网络中断。"
    ),
    "rank {}'s stacks:\n{}": "rank {0} 的调用栈：\n{1}",
    "the step": "这一步",
    "agreeing whether to stop": "商定是否停止",
    "an evaluation": "一次评估",
    "reading the data": "读取数据",
    "building the model": "构建模型",
    "reading a checkpoint": "读取检查点",
}

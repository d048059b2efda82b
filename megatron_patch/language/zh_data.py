"""Chinese of `data/`: what training reads."""

from __future__ import annotations

SENTENCES = {
    # batches, splits, indexed_pretrain, json_pretrain, finetune
    "The data holds {} from {} to {}, and the model has {} rows (0 to {}); it was tokenized for another vocabulary: prepare it with "
    "this model's tokenizer.": (
        "数据中 {0} 的取值为 {1} 到 {2}，而模型有 {3} 行（0 到 {4}）；数据是按别的词表切分的：请用本模型的分词器重新制作。"
    ),
    "{}: {} Evaluation is skipped.": "{0}：{1}跳过评估。",
    "  {}: {} Evaluation is skipped.": "  {0}：{1}跳过评估。",
    "  the split {} leaves no validation data; evaluation is skipped": "  --split {0} 没有留出验证数据，跳过评估",
    "The split {} leaves no training data in {}.": "--split {0} 在 {1} 中没有留出训练数据。",
    "{} is damaged ({})": "{0} 已损坏（{1}）",
    "The samples' indices in {} cannot be used: {}, as a killed run or a full disk leaves it; delete that folder and start again, the "
    "same indices are made anew.": (
        "{0} 中的样本索引不能使用：{1}，可能是运行被杀掉或磁盘已满所致；请删除该文件夹再启动，会重新生成相同的索引。"
    ),
    "{} has {} documents, of which the split {} leaves none for training.": "{0} 有 {1} 个文档，按 --split {2} 没有一个用于训练。",
    ", too few for as many samples as TRAIN_TOKENS asks for": "，不够 TRAIN_TOKENS 所需的样本数",
    "{}: the {} documents that the split {} gives to training hold {}{}; prepare the data again from an input that holds text.": (
        "{0}：--split {2} 分给训练的 {1} 个文档只有 {3}{4}；请用含有文本的输入重新制作数据。"
    ),
    "no tokens": "0 个 token",
    "{} token": "{0} 个 token",
    "{}: the split {} gives {} {}, fewer than one sample of {}, so each sample repeats them": (
        "{0}：--split {1} 分给 {2} 的是 {3}，不足一条 {4} 个 token 的样本，因此每条样本会重复它们"
    ),
    "samples 1 to {} of {} are trained on, and {} are held out (number {}, in the order of the file; --split {})": (
        "共 {1} 条样本，第 1 到 {0} 条用于训练，{2} 条留作验证（按文件顺序第 {3} 条；--split {4}）"
    ),
    "{} to {}": "{0} 到 {1}",
    "{}; {} Evaluation is skipped.": "{0}；{1}跳过评估。",
    "{}: evaluated on every {} iterations.": "{0}：每 {1} 次迭代评估一次。",
    "{}; --eval-interval 0, no evaluation.": "{0}；--eval-interval 0，不评估。",
    # json_dataset
    "PAD_LEN is {}; it must be more than 1 and at most SEQ_LEN, {}.": "PAD_LEN 是 {0}；必须大于 1，且不大于 SEQ_LEN（{1}）。",
    "tokenizing {}": "正在分词 {0}",
    "tokenizing": "分词",
    "evaluating {}": "正在评估 {0}",
    "answering": "回答",
    "answers": "个回答",
    "windows": "个窗口",
    "the samples' indices cannot be written: {}": "无法写入样本索引：{0}",
    "joining": "合并",
    "samples": "条样本",
    "laying out the samples": "排布样本",
    "{} does not exist; give a JSON list or JSON Lines file.": "{0} 不存在；请给出 JSON 列表或 JSON Lines 文件。",
    "it is a {}, it must be an object": "它是 {0}，必须是对象",
    "{} at character {}, so it is no JSON": "不是 JSON：第 {1} 个字符处 {0}",
    "it is nested too deeply": "嵌套过深",
    "line {}": "第 {0} 行",
    "item {}": "第 {0} 项",
    # json_report
    "{} record": "{0} 条记录",
    "{} sample has": "{0} 条样本",
    "{} samples have": "{0} 条样本",
    "{} of {} records cannot be used and {} left out{}.": "{1} 条记录中有 {0} 条不能使用，已略去{2:.0}{3}。",
    "; {} lists {}": "；详见 {0}{1:.0}",
    "; the first: {}": "；最前面的是：{0}",
    "its {} samples have no answer that is not empty or of weight 0, so there is nothing to learn.": (
        "其 {0} 条样本的回答都是空的或权重为 0，没有可学的内容。"
    ),
    ", and {} more": "，另有 {0} 个",
    "and {} more": "另有 {0} 个",
    ", or allow more with --max-bad-fraction {}": "，或用 --max-bad-fraction {0} 放宽",
    "{}: {} of {} records cannot be used, more than the allowed fraction {}{}. The first: {}. Mend them{}.": (
        "{0}：{2} 条记录中有 {1} 条不能使用，超过允许的比例 {3}{4}。最前面的是：{5}。请改正它们{6}。"
    ),
    "none of its {} samples has an answer within {} tokens, so there is nothing to learn; a PAD_LEN of {} (SEQ_LEN with --packing) "
    "keeps 95 % of them whole.": (
        "其 {0} 条样本没有一条的回答落在前 {1} 个 token 内，没有可学的内容；PAD_LEN 取 {2}（使用 --packing 时为 SEQ_LEN）可使 95 % 的样本保持完整。"
    ),
    "{} an empty answer, which teaches nothing, not even to end.": "{0}的回答为空，学不到任何内容，包括结束符。",
    "{} no answer, or answers of weight 0 alone, and {} nothing.": "{0}没有回答，或回答的权重都为 0，学不到任何内容。{1:.0}",
    "WARNING: the answers of {} hold no end token that the folder's model waits for, since its chat template writes none; choose "
    "another --template, or mend that one or the folder's eos_token_id.": (
        "警告：{0}的回答中没有模型所等待的结束符，因为该文件夹的聊天模板不写它；请换一个 --template，或修改该模板或 eos_token_id。"
    ),
    "keys with content that are not used: {}{}.": "有内容但未使用的键：{0}{1}。",
    "keys that only describe a record, not used: {}.": "只描述记录、未使用的键：{0}。",
    "{} holds no samples; give a JSON list or JSON Lines file with at least one.": (
        "{0} 中没有样本；请给出至少有一条的 JSON 列表或 JSON Lines 文件。"
    ),
    "{} samples in {} sequences of {} ({} % filled): {} tokens, {} of them learnt.": (
        "{0} 条样本，{1} 个长度为 {2} 的序列（填充率 {3} %）：{4} 个 token，其中 {5} 个参与学习。"
    ),
    "WARNING: {} of {} samples, more than half, are longer than {} tokens and were cut; their answers have no end token. A PAD_LEN of "
    "{} (SEQ_LEN with packing) keeps 95 % of them whole.": (
        "警告：{1} 条样本中有 {0} 条（超过一半）长于 {2} 个 token，已被截断，其回答没有结束符。PAD_LEN 取 {3}（打包时为 SEQ_LEN）可使 95 % 的样本保持完整。"
    ),
    "{} no answer within {} tokens and {} nothing.": "{0}在前 {1} 个 token 内没有回答，学不到任何内容。{2:.0}",
    "1 of {} samples is longer than {} tokens and was cut; its answer has no end token. A larger PAD_LEN (SEQ_LEN with packing) keeps "
    "it whole.": (
        "{0} 条样本中有 1 条长于 {1} 个 token，已被截断，其回答没有结束符。增大 PAD_LEN（打包时为 SEQ_LEN）可使它保持完整。"
    ),
    "{} of {} samples are longer than {} tokens and were cut; their answers have no end token. A larger PAD_LEN (SEQ_LEN with packing) "
    "keeps them whole.": (
        "{1} 条样本中有 {0} 条长于 {2} 个 token，已被截断，其回答没有结束符。增大 PAD_LEN（打包时为 SEQ_LEN）可使它们保持完整。"
    ),
    # token_cache
    "its account has the fields {}": "其统计的字段是 {0}",
    "first_bad is no list of texts": "first_bad 不是文本列表",
    "unused is no object": "unused 不是对象",
    "{} cannot be read back after writing; check the disk, or choose another cache folder.": (
        "{0} 写入后无法读回；请检查磁盘，或换一个缓存文件夹。"
    ),
    "its size or format is wrong": "大小或格式不对",
    "its checksum is wrong": "校验和不对",
    "its account is no object": "其统计不是对象",
    "its samples do not lie end to end": "其样本没有首尾相接",
    "the token cache {} is damaged ({}); it is made again.": "token 缓存 {0} 已损坏（{1}）；将重新生成。",
    "{} has no file locks ({}); several processes may tokenize the same file.": "{0} 不支持文件锁（{1}）；可能有多个进程对同一文件分词。",
    # tokenizer, tokenizer_files, end_token, run_tokenizer
    "generation with this model stops at what {} names": "用这个模型生成时，遇到 {0} 所写的结束符停止",
    "the tokenizer": "分词器",
    "the tokenizer has no {}, which {} names": "{1} 写了 {0}，而分词器中没有",
    "The files in {} name different end tokens (the tokenizer {}, {}); answers end in {}: {}.": (
        "{0} 中的文件所写的结束符不同（分词器为 {1}，{2}）；回答以 {3} 结束：{4}。"
    ),
    "{}: eos_token_id is {}; it takes a token's number, or a list of them.": "{0}：eos_token_id 是 {1}；应为 token 编号或其列表。",
    "JSON data needs a tokenizer, and the checkpoint's folder has neither tokenizer.model nor tokenizer.json: copy one there, or add "
    "--tokenizer-path FOLDER after the last argument.": (
        "JSON 数据需要分词器，而检查点的文件夹中没有 tokenizer.model 或 tokenizer.json：请复制一份过去，或在最后一个参数之后加 "
        "--tokenizer-path 文件夹。"
    ),
    "The tokenizer in {} has {} tokens and the model {} rows; convert with EXTRA_VOCAB_SIZE {} or more, or use its own tokenizer.": (
        "{0} 中的分词器有 {1} 个 token，而模型有 {2} 行；转换时 EXTRA_VOCAB_SIZE 请用 {3} 或更大，或使用模型自己的分词器。"
    ),
    "documents end in {}, as in the model's pre-training; the tokenizer's eos_token {} ends a turn.": (
        "文档以 {0} 结尾，与模型预训练时相同；分词器的 eos_token {1} 用于结束一轮对话。"
    ),
    "numbers tokens up to {}, or its start and end token beyond them": "的 token 编号到 {0}，或起始、结束符在其之外",
    "tokenizer folder {} does not exist; give the folder that holds tokenizer.model.": (
        "分词器文件夹 {0} 不存在；请给出存放 tokenizer.model 的文件夹。"
    ),
    "{} lacks the start token <s> or the end token </s>; use a tokenizer of the LLaMA kind.": (
        "{0} 缺少起始符 <s> 或结束符 </s>；请使用 LLaMA 类的分词器。"
    ),
    "{} lacks the start or end token that tokenizer_config.json names; they must be in it.": (
        "{0} 缺少 tokenizer_config.json 所写的起始符或结束符；它们必须在其中。"
    ),
    "{} {}; copy the model's own file there.": "{0} {1}；请放入模型自己的文件。",
    "{} holds neither tokenizer.model nor tokenizer.json; copy the model's tokenizer there.": (
        "{0} 中没有 tokenizer.model 或 tokenizer.json；请放入模型的分词器。"
    ),
    "{} is not a SentencePiece model ({}); copy the model's own file there.": "{0} 不是 SentencePiece 模型（{1}）；请放入模型自己的文件。",
    "{} is no tokenizer.json that `tokenizers` reads: {}; copy the model's own file there.": (
        "{0} 不是 `tokenizers` 能读取的 tokenizer.json：{1}；请放入模型自己的文件。"
    ),
    "token {} lies outside the tokenizer's vocabulary of {} tokens.": "token {0} 超出分词器大小为 {1} 的词表。",
    "{}: added_tokens_decoder is {}; it must be an object: copy the model's own file there.": (
        "{0}：added_tokens_decoder 是 {1}；必须是对象：请放入模型自己的文件。"
    ),
    "more than {} bytes, which no chat template has": "超过 {0} 字节的内容，聊天模板不会这么大",
    "{}: chat_template is {}; it must be a text.": "{0}：chat_template 是 {1}；必须是文本。",
    "{}: {} is {}; it must be a token's text: copy the model's own files there.": (
        "{0}：{1} 是 {2}；必须是 token 的文本：请放入模型自己的文件。"
    ),
    "{}: {} is no added token's text; copy the model's own file there.": "{0}：{1} 不是新增 token 的文本；请放入模型自己的文件。",
    "{}: {} is no token's number, 0 to {}; copy the model's own file there.": (
        "{0}：{1} 不是 token 编号（0 到 {2}）；请放入模型自己的文件。"
    ),
    "{} has {}; copy the model's own file there.": "{0} 有{1}；请放入模型自己的文件。",
    "{} is not UTF-8 (byte {}); copy the model's own file there.": "{0} 不是 UTF-8（第 {1} 字节）；请放入模型自己的文件。",
    # engines of tokenizing, and parts of a data set
    "it is no serialized SentencePiece model ({})": "它不是序列化的 SentencePiece 模型（{0}）",
    "a field at byte {} is cut off or of an unknown kind": "字节 {0} 处的字段被截断或类型未知",
    "a number before byte {} has more than 64 bits": "字节 {0} 之前的数超过 64 位",
    "it is no BPE with byte fallback": "它不是带字节回退的 BPE",
    "it changes characters or spaces of a text": "它会改变文本中的字符或空格",
    "it has pieces of its user's own": "它含有用户自定义的词元",
    "several of its pieces have one score, so their order depends on the text": "它有多个词元分数相同，其顺序取决于文本",
    "fastokens cannot be imported ({})": "无法导入 fastokens（{0}）",
    "fastokens does not take its tokenizer: {}": "fastokens 不接受它的 tokenizer：{0}",
    "{} gives other ids, for example for {}": "{0} 给出不同的 id，例如对 {1}",
    "{} reads the texts; on {} texts it gave the ids of {}.": "由 {0} 读取文本；在 {1} 条文本上与 {2} 的 id 一致。",
    "{} reads the texts, because {}.": "由 {0} 读取文本，因为{1}。",
    "{}: {} gave other ids than {}; nothing of this run is kept. Run it again with --tokenizer-engine reference, and report "
    "this record to the project.": (
        "{0}：{1} 给出的 id 与 {2} 不同；本次运行的结果不保留。请加上 --tokenizer-engine reference 重新运行，并向本项目报告该记录。"
    ),
    "none of the {} parts holds a document; prepare them from an input that holds text.": (
        "{0} 个部分中都没有文档；请用含有文本的输入重新准备。"
    ),
    "{}.idx has documents of several sequences; only pairs of one sequence a document are joined.": (
        "{0}.idx 中的文档含有多个序列；只能合并每个文档一个序列的数据对。"
    ),
    "the parts 1/{} to {}/{} are wanted, once and in this order; got {}.": "需要 1/{0} 到 {1}/{2} 各一次，并按此顺序；收到 {3}。",
    "{} is not finished: {}.partial is there; wait for its run, or run it again.": (
        "{0} 尚未完成：{1}.partial 还在；请等待其运行结束，或重新运行。"
    ),
    "{}.idx has ids of type {}, and {}.idx of type {}; prepare them with one tokenizer.": (
        "{0}.idx 的 id 类型为 {1}，而 {2}.idx 为 {3}；请用同一个 tokenizer 准备。"
    ),
    "{} was made with another {} than {}; prepare both alike, then join them.": (
        "{0} 与 {2} 的 {1} 不同；请用相同的设置准备后再合并。"
    ),
    "{} is no part of the input that {} was made from; join the parts of one input.": (
        "{0} 不属于 {1} 所用的输入；请合并同一输入的各部分。"
    ),
}

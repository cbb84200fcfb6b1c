"""Sentences that a base speaks for `--replay`, by language, with a place for a tag. None is from a data set."""

from __future__ import annotations

PLACE = "{tag}"

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "I read your letter twice, {tag} and I still don't know what to say.",
        "{tag} We should have left an hour ago.",
        "You put the keys in the fridge again, didn't you? {tag}",
        "The train was late, {tag} so we walked along the river instead.",
        "{tag} I never thought that this old radio would work again.",
        "My grandmother used to bake this bread every Sunday. {tag}",
        "It has been raining since Monday, {tag} and the garden is a lake.",
        "So that is where the cat was hiding all morning. {tag}",
        "Let me think about it for a moment, {tag} and then I will call you back.",
        "{tag} Did you really climb all the way up there alone?",
        "They painted the whole kitchen green, {tag} even the ceiling.",
        "I promised to be home by seven, and now it is ten. {tag}",
        "Nobody told me that the meeting was moved to Thursday, {tag} so I waited there alone.",
    ),
    "fr": (
        "J'ai relu ta lettre deux fois, {tag} et je ne sais toujours pas quoi dire.",
        "{tag} Nous aurions dû partir il y a une heure.",
        "Tu as encore mis les clés dans le frigo ? {tag}",
        "Le train était en retard, {tag} alors nous avons marché le long du fleuve.",
        "Ma grand-mère faisait ce pain tous les dimanches. {tag}",
        "Il pleut depuis lundi, {tag} et le jardin est un lac.",
        "{tag} Tu es vraiment monté tout seul jusque là-haut ?",
    ),
    "de": (
        "Ich habe deinen Brief zweimal gelesen, {tag} und weiß immer noch nicht, was ich sagen soll.",
        "{tag} Wir hätten vor einer Stunde losfahren sollen.",
        "Du hast die Schlüssel wieder in den Kühlschrank gelegt, oder? {tag}",
        "Der Zug hatte Verspätung, {tag} also sind wir am Fluss entlang gelaufen.",
        "Meine Großmutter hat dieses Brot jeden Sonntag gebacken. {tag}",
        "Es regnet seit Montag, {tag} und der Garten ist ein See.",
        "{tag} Bist du wirklich ganz allein dort hinaufgestiegen?",
    ),
    "es": (
        "He leído tu carta dos veces, {tag} y todavía no sé qué decir.",
        "{tag} Deberíamos haber salido hace una hora.",
        "¿Has vuelto a dejar las llaves en la nevera? {tag}",
        "El tren llegó tarde, {tag} así que caminamos junto al río.",
        "Mi abuela hacía este pan todos los domingos. {tag}",
        "Llueve desde el lunes, {tag} y el jardín es un lago.",
        "{tag} ¿De verdad has subido hasta allí tú solo?",
    ),
    "it": (
        "Ho letto la tua lettera due volte, {tag} e ancora non so che cosa dire.",
        "{tag} Saremmo dovuti partire un'ora fa.",
        "Hai messo di nuovo le chiavi nel frigo, vero? {tag}",
        "Il treno era in ritardo, {tag} così abbiamo camminato lungo il fiume.",
        "Mia nonna faceva questo pane ogni domenica. {tag}",
        "Piove da lunedì, {tag} e il giardino è un lago.",
        "{tag} Sei davvero salito fin lassù da solo?",
    ),
    "ko": (
        "네 편지를 두 번 읽었는데, {tag} 아직도 무슨 말을 해야 할지 모르겠어.",
        "{tag} 우리는 한 시간 전에 출발했어야 했어.",
        "열쇠를 또 냉장고에 넣었구나? {tag}",
        "기차가 늦어서, {tag} 우리는 강을 따라 걸었어.",
        "월요일부터 비가 와서, {tag} 마당이 호수가 됐어.",
    ),
    "zh": (
        "你的信我读了两遍，{tag} 还是不知道该说什么。",
        "{tag} 我们一个小时前就该出发了。",
        "你又把钥匙放进冰箱里了吗？{tag}",
        "火车晚点了，{tag} 所以我们沿着河边走。",
        "从星期一开始一直下雨，{tag} 花园都变成湖了。",
    ),
}
"""In natural speech of each language of `BASE_VOICES` that has known tags."""

OF_FEW_WORDS: tuple[str, ...] = (
    "Good morning Robert, {tag} and welcome to Madrid.",
    "{tag} Please close the kitchen window, it is very cold.",
    "I forgot my chocolate in the office, {tag} and now it is late.",
    "The white horse is behind the garage. {tag}",
    "What a wonderful song, {tag} please sing it for Helen.",
    "{tag} I have to work on Sunday, and I am so tired.",
    "We need six oranges, {tag} and some sugar for David.",
    "It will be windy in Chicago, and cloudy in Boston. {tag}",
    "Thank you Sarah, {tag} that is a clever idea.",
    "{tag} Did you hear the dog in the bathroom?",
    "My name is Thomas, {tag} and I can tell you a funny story.",
    "Turn off the radio in the bedroom, {tag} I want to sleep.",
    "The train to Paris leaves at eleven twenty. {tag}",
    "A black rabbit is in the garden, {tag} it is beautiful.",
)
"""For a toy base: those of them whose words it knows are spoken."""

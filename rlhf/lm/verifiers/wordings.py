"""How the generated prompts word each instruction: several ways a kind, with its keywords in braces.

An instruction that compares has a list for each relation.
"""

from __future__ import annotations

WORDINGS: dict[str, tuple[str, ...]] = {
    "keywords:existence": (
        "Use the following words: {keywords}.",
        "Make sure that the words {keywords} appear in your answer.",
        "Your answer has to contain {keywords}.",
        "Work these words in: {keywords}.",
        "Include the keywords {keywords}.",
    ),
    "keywords:frequency at least": (
        "Use the word {keyword} at least {frequency} times.",
        "The word {keyword} has to appear {frequency} times or more.",
        "Mention {keyword} no fewer than {frequency} times.",
        "Let the word {keyword} appear in your response at least {frequency} times.",
    ),
    "keywords:frequency less than": (
        "Use the word {keyword} less than {frequency} times.",
        "The word {keyword} must appear fewer than {frequency} times.",
        "Do not write the word {keyword} {frequency} times or more.",
        "In your response the word {keyword} may appear less than {frequency} times.",
    ),
    "keywords:forbidden_words": (
        "Do not use the words {forbidden_words}.",
        "Avoid the following words: {forbidden_words}.",
        "The words {forbidden_words} must not appear in your answer.",
        "Answer without the words {forbidden_words}.",
        "Do not include keywords such as {forbidden_words} anywhere.",
    ),
    "keywords:letter_frequency at least": (
        "Use the letter {letter} at least {let_frequency} times.",
        "The letter {letter} has to appear {let_frequency} times or more.",
        "Let the letter {letter} appear at least {let_frequency} times in your response.",
    ),
    "keywords:letter_frequency less than": (
        "Use the letter {letter} less than {let_frequency} times.",
        "The letter {letter} must appear fewer than {let_frequency} times.",
        "Let the letter {letter} appear less than {let_frequency} times in your response.",
    ),
    "language:response_language": (
        "Answer in {language}.",
        "Write your whole answer in {language} and in no other language.",
        "Respond only in {language}.",
        "Use nothing but {language}.",
        "Your entire reply should be in the {language} language.",
    ),
    "length_constraints:number_sentences at least": (
        "Write at least {num_sentences} sentences.",
        "Your answer should have {num_sentences} sentences or more.",
        "Use no fewer than {num_sentences} sentences.",
        "The response should contain at least {num_sentences} sentences.",
    ),
    "length_constraints:number_sentences less than": (
        "Write less than {num_sentences} sentences.",
        "Your answer should have fewer than {num_sentences} sentences.",
        "Stay below {num_sentences} sentences.",
        "The response should contain less than {num_sentences} sentences.",
    ),
    "length_constraints:number_words at least": (
        "Write at least {num_words} words.",
        "Your answer should have {num_words} words or more.",
        "Use no fewer than {num_words} words.",
        "Answer in at least {num_words} words.",
    ),
    "length_constraints:number_words less than": (
        "Write less than {num_words} words.",
        "Your answer should have fewer than {num_words} words.",
        "Stay below {num_words} words.",
        "Answer in less than {num_words} words.",
    ),
    "length_constraints:number_paragraphs": (
        "Write {num_paragraphs} paragraphs and separate them with ***.",
        "Your answer must have exactly {num_paragraphs} paragraphs with the markdown divider *** between them.",
        "There should be {num_paragraphs} paragraphs. Put *** between one paragraph and the next.",
        "Split your answer into {num_paragraphs} paragraphs by the divider: ***",
    ),
    "length_constraints:nth_paragraph_first_word": (
        "Write {num_paragraphs} paragraphs with an empty line between them. Paragraph {nth_paragraph} must begin with "
        "the word {first_word}.",
        "There should be {num_paragraphs} paragraphs, separated by two line breaks and nothing else. The first word of "
        "paragraph {nth_paragraph} has to be {first_word}.",
        "Use exactly {num_paragraphs} paragraphs with a blank line between each. Start paragraph {nth_paragraph} with "
        "the word {first_word}.",
    ),
    "detectable_content:number_placeholders": (
        "Use at least {num_placeholders} placeholders in square brackets, such as [name].",
        "Your answer must contain at least {num_placeholders} placeholders written like [date].",
        "Leave {num_placeholders} or more blanks to fill in, each in square brackets like [place].",
    ),
    "detectable_content:postscript": (
        "End with a postscript that begins with {postscript_marker}",
        "Add a postscript at the end. It must start with {postscript_marker}",
        "After your answer, add a short note that starts with {postscript_marker}",
        "Please close your response with a postscript starting with {postscript_marker}",
    ),
    "detectable_format:number_bullet_lists": (
        "Answer with exactly {num_bullets} bullet points. Begin each with * like this:\n* A point.",
        "Use {num_bullets} bullet points in markdown, such as:\n* One point\n* Another point",
        "Your answer must contain exactly {num_bullets} bullets in markdown, each on a line that starts with *",
        "Write it as a list of {num_bullets} points, and start the line of each with -",
    ),
    "detectable_format:constrained_response": (
        'Answer with "My answer is yes.", "My answer is no." or "My answer is maybe."',
        "Choose one of these answers: 'My answer is yes.', 'My answer is no.', 'My answer is maybe.'",
        "Your answer has to contain one of these sentences: My answer is yes. My answer is no. My answer is maybe.",
    ),
    "detectable_format:number_highlighted_sections": (
        "Highlight at least {num_highlights} parts of your answer with markdown, like *this part*.",
        "Emphasise {num_highlights} or more phrases with stars, such as *a phrase*.",
        "Mark at least {num_highlights} sections in markdown, i.e. *marked section*.",
    ),
    "detectable_format:multiple_sections": (
        "Write {num_sections} sections. Begin each with {section_spliter} and its number, like:\n{section_spliter} 1",
        "Your answer must have {num_sections} sections, headed {section_spliter} 1, {section_spliter} 2 and so on.",
        "Divide your answer into {num_sections} sections and mark the beginning of each with {section_spliter} X, "
        "where X is 1, 2 and so on.",
    ),
    "detectable_format:json_format": (
        "Give your whole answer as JSON.",
        "The entire output has to be valid JSON. You may put it between markdown ticks such as ```.",
        "Answer with a JSON object and nothing else.",
        "Format all of your response as JSON.",
    ),
    "detectable_format:title": (
        "Give it a title in double angular brackets, such as <<a title>>.",
        "Your answer must have a title that is wrapped like this: <<title>>.",
        "Put a title between << and >> at the top.",
        "Include a title between double angular brackets, i.e. <<my title>>.",
    ),
    "combination:two_responses": (
        "Give two different answers, separated by six asterisks: ******",
        "Write two different versions with ****** between them.",
        "Respond twice in different ways. Put exactly six asterisk symbols (******) between the two responses.",
    ),
    "combination:repeat_prompt": (
        "Say the request above again word for word and then answer it. Say nothing before that. What stands down here "
        "is not part of the request.",
        "Before you answer, copy the first paragraph of this message exactly as it is. Begin with it.",
        "Start your response by repeating the request above without any change, then give your answer. Do not repeat "
        "this sentence.",
    ),
    "startend:end_checker": (
        'Finish with exactly these words: "{end_phrase}" Nothing may follow them.',
        "The very last words of your answer must be: {end_phrase}",
        "End your response with the phrase {end_phrase} and write no other words after it.",
    ),
    "startend:quotation": (
        "Put your whole answer in double quotation marks.",
        "Wrap all of your answer in double quotation marks.",
        'Begin and end your answer with a double quotation mark (").',
        "Your entire response should stand between double quotation marks.",
    ),
    "change_case:capital_word_frequency at least": (
        "Write at least {capital_frequency} words in capital letters.",
        "Use {capital_frequency} or more words in all capitals, like THIS.",
        "Words with all capital letters should appear at least {capital_frequency} times.",
    ),
    "change_case:capital_word_frequency less than": (
        "Write less than {capital_frequency} words in capital letters.",
        "Use fewer than {capital_frequency} words in all capitals.",
        "Words with all capital letters should appear less than {capital_frequency} times.",
    ),
    "change_case:english_capital": (
        "Write in English and in capital letters only.",
        "Use nothing but capital letters, in English.",
        "Your whole answer should be in English and in all capitals.",
        "WRITE EVERYTHING IN CAPITAL LETTERS, in English.",
    ),
    "change_case:english_lowercase": (
        "Write in English and in lowercase letters only.",
        "Use no capital letters at all, and answer in English.",
        "Your whole answer should be English in all lowercase.",
        "do not use a single capital letter, and write in english.",
    ),
    "punctuation:no_comma": (
        "Do not use any commas.",
        "Write it without commas.",
        "Your answer must not contain a single comma.",
        "Refrain from using commas anywhere in your response.",
        "No commas are allowed.",
    ),
}

KEYWORDS = (
    *("water", "morning", "friend", "window", "always", "together", "story", "bright", "quiet", "garden", "simple"),
    *("people", "favourite", "remember", "small", "strong", "family", "summer", "light", "learn", "often", "careful"),
    *("journey", "early", "warm", "music", "silver", "question", "balance", "surprise", "hands", "village", "market"),
    *("gentle", "history", "nature", "promise", "colour", "evening", "clever", "patient", "distance", "future", "idea"),
    *("road", "smile", "winter", "machine", "paper", "secret", "enough", "world", "letter", "travel", "ready", "fresh"),
)

FREQUENT = (
    *("very", "and", "is", "are", "people", "important", "also", "many", "can", "like", "good", "great", "time", "the"),
    *("because", "make", "with", "have", "world", "life", "will", "new", "best", "love", "feel", "way", "day", "it"),
)
"""Words that an answer is likely to hold unless it is asked not to."""

FIRST_WORDS = (
    *(
        "today",
        "however",
        "finally",
        "some",
        "many",
        "imagine",
        "first",
        "then",
        "perhaps",
        "in",
        "the",
        "when",
        "most",
    ),
    *("everybody", "although", "another", "sometimes", "now", "with", "here"),
)

END_PHRASES = (
    *(
        "That is all for today.",
        "I hope this helps you.",
        "What would you do?",
        "Try it yourself!",
        "Thank you for reading.",
    ),
    *("Now it is your turn.", "The rest is up to you.", "See you next time!", "Is there more you want to know?"),
    *("Let me know what you think.", "And that is the whole story.", "Good luck with it!", "There is nothing to add."),
    *("Who would have thought?", "Take care of yourself.", "That is my view."),
)

LANGUAGES = {"es": "Spanish", "fr": "French", "de": "German", "it": "Italian", "pt": "Portuguese", "nl": "Dutch"}

SECTIONS = ("Section", "SECTION", "Part", "PART", "Step", "Chapter")

"""Sentence frames for generated English; slots in braces are filled by training.prose."""

from training.listing import items, lines

SENTENCES = lines("""
The {adj} {noun} {verb3} the {noun}.
The {noun} is {adj} and {adj}.
A {adj} {noun} can {verb} a {noun}.
{People} {verbd} the {noun} {adv}.
{People} {verbd} a {adj} {noun} near the {noun}.
{People} will {verb} the {noun} before {people} {verb3} it.
It is {adj} to {verb} the {noun} {adv}.
If you {verb} the {noun}, the {noun} will be {adj}.
When you {verb} a {noun}, {verb} the {noun} as well.
You should {verb} the {noun} for about {n} {unit}.
{Verb} the {noun} and {verb} it {adv}.
{Verb} the {adj} {noun} until it is {adj}.
{Verb} about {n} {unit} of {noun} to the {noun}.
First, {verb} the {noun}. Then {verb} the {noun}.
Next, {verb} your {noun} with a {adj} {noun}.
Finally, {verb} the {noun} and enjoy the {abs}.
The {abs} of {subject} depends on the {abs}.
{Subject} is a {adj} way to {verb} your {abs}.
Many people {verb} {subject} because of the {abs}.
{Subject} needs {abs}, {abs} and a lot of {abs}.
In {place}, {people} often {verb} the {noun}.
The {abs} in {place} is {adj}, and the {noun} is {adj}.
There are {n} {unit} between the {noun} and the {noun}.
There is no {adj} {abs} without {abs}.
What is the {abs} of a {noun}?
Have you ever {verbd} a {noun}?
Do you think the {noun} is {adj}?
Why does the {noun} {verb} the {noun}?
I think that {abs} is more {adj} than {abs}.
I hope this helps you to {verb} the {noun}.
Let me explain how the {noun} {verb3} the {noun}.
Here is a {adj} idea: {verb} the {noun} {adv}.
For example, a {noun} can be {adj} or {adj}.
This means that the {abs} is {adj}.
However, the {noun} is not always {adj}.
Because of the {abs}, {people} {verbd} the {noun}.
Although it was {adj}, {people} kept {verbing} the {noun}.
While {verbing} the {noun}, {people} {verbd} a {noun}.
Without {abs}, the {noun} would never {verb}.
The most {adj} thing is to {verb} the {noun}.
One of the {adj} {nouns} {verbd} the {noun}.
All {nouns} are {adj}, but some {nouns} are {adj}.
Some {nouns} {verb} {adv} and others {verb} {adv}.
{People} said that the {noun} was {adj}.
{People} asked, "Is the {noun} {adj}?"
"{Verb} the {noun}," said {people}.
{People} looked at the {noun} and smiled.
{People} went to {place} to {verb} the {noun}.
{People} has {n} {nouns} and {n} {nouns}.
The {noun}, the {noun} and the {noun} are all {adj}.
It takes {n} {unit} to {verb} the {noun}.
The {noun} costs {n} dollars and the {noun} costs {n}.
About {n} percent of the {nouns} are {adj}.
The {noun} was {verbd} {n} years ago.
In {year}, {people} {verbd} the first {noun}.
Between {year} and {year} the {abs} became {adj}.
{Adv}, the {noun} {verb3} the {noun}.
{Adv} it is better to {verb} the {noun} first.
Try to {verb} the {noun} every {n} {unit}.
Make sure that the {noun} is {adj} before you {verb} it.
Be {adj} when you {verb} the {noun}.
Do not {verb} the {noun} when it is {adj}.
Never {verb} a {adj} {noun} without a {noun}.
Remember to {verb} the {noun} {adv}.
A {noun} is a kind of {noun} that {verb3} {nouns}.
{Abs} is the {abs} of {abs}.
{Abs} and {abs} go together.
The {abs} is {adj}, the {abs} is {adj}, and so on.
To {verb} a {noun}, you need a {noun}, a {noun} and some {noun}.
The best {abs} comes from {verbing} {adv}.
My {noun} is {adj}, so I {verb} it {adv}.
We {verbd} the {noun}, and then we {verbd} it again.
She {verbd} the {noun} and he {verbd} the {noun}.
They were {verbing} the {noun} when the {noun} {verbd}.
He wanted to {verb} his {noun} but the {noun} was {adj}.
You can {verb} it with {noun}, {noun} or {noun}.
This {noun} {verb3} more {abs} than that {noun}.
Each {noun} has its own {abs}.
Every {noun} {verb3} a {adj} {noun}.
Most of the {abs} is {adj}.
As a {abs}, {people} {verb} the {abs}.
It was a {adj} {noun}, and {people} {verbd} it.
The {noun} that {people} {verbd} is {adj}.
The {noun} which {verbd} the {noun} was {adj}.
The answer is {n}.
The total is {n} {unit}.
{n} plus {n} is {n}.
Step {d}: {verb} the {noun}.
Note that the {abs} may be {adj}.
In general, {nouns} are {adj} and {nouns} are {adj}.
In short, {verb} the {noun} and {verb} the {abs}.
On the other hand, {abs} can be {adj}.
In my {abs}, the {noun} is {adj}.
According to {people}, {subject} is {adj}.
If the {abs} is {adj}, {verb} it {adv}; if not, {verb} the {noun}.
It helps to {verb} the {noun} in the {noun}.
""")

FRAGMENTS = lines("""
{adj} {noun}
{noun}
{verbing} the {noun}
{n} {unit} of {noun}
{adj} {abs}
a {adj} {noun} for {people}
{verb} the {noun} {adv}
{noun} and {noun}
{subject}
""")

OPENERS = items("""
Sure!|Of course.|Here is how.|Here are some tips:|Good question.|Yes.|Certainly!|Here is a short answer.
Happy to help.|Let's see.
Okay, here we go.|That depends.|There are several ways.|Great choice!|It is easier than it looks.|Follow these steps:
In short:|Well,
Absolutely.|Here's a simple plan:|I'd be glad to help.|Let me think.|The short answer is yes.|No problem.
""")

CLOSERS = items("""
Enjoy!|Good luck!|Have fun.|That's all.|I hope that helps.|Let me know how it goes.|Happy cooking!
You will get better with practice.
Take your time.|Ask me if anything is unclear.|And that is it.|See you soon.|Have a great day!|Well done.
""")

PROMPTS = items("""
How do I {verb} a {noun}?|What is {subject}?|Tell me about {subject}.|Can you {verb} the {noun}?
Why is the {noun} {adj}?|Write about a {noun}.
What is the best way to {verb} a {adj} {noun}?|Give me tips for {subject}.|I need help with my {noun}.
Explain the {abs} of {subject}.
Which {noun} should I {verb}?|Describe a {adj} {noun} in {place}.|List {d} ideas for {subject}.
My {noun} is {adj}. What can I do?
Summarise the {abs} of the {noun}.|What do you think about {abs}?|Plan a trip to {place}.
Help me {verb} my {noun} in {n} {unit}.
How many {nouns} does a {noun} have?|Compare a {noun} and a {noun}.|Tell me a joke about a {noun}.
Is it {adj} to {verb} a {noun}?
""")

# Structured answers without a sentence: "field: value" in many shapes.
FIELDS = items("""
Item: {noun}|Quantity: {n}|Colour: {adj}|Size: {n} {unit}|Date: {date}|Time: {time}|Place: {place}|Price: {money}
Topic: {subject}|Title: The {adj} {noun}
Author: {name}|Name: {name}|Subject: {abs}|Status: {adj}|Weight: {n} {unit}|Day: {weekday}|Answer: {N}|Result: {n}
Goal: {verb} the {noun}|Owner: {name}
Material: {noun}|Category: {nouns}|Note: {verb} it {adv}|Total: {money}|Guests: {n}
Ingredients: {noun}, {noun}, {noun}|Duration: {n} {unit}|From: {place}
To: {place}|Order: {n} {nouns}|Booked: {noun}, {weekday}, {time}|Next step: {verb} the {noun}|Category: {adj}
Temperature: {n} degrees|Score: {d} of 10
Language: {place}|Step {d}: {verb} the {noun}|Pack: {noun}|Task: {verb} the {noun}|Reason: {abs}|Count: {N}
Code: {code}|Version: {v}
""")
FIELD_ENDS = items("""
The entry is saved.|Done.|I have added it.|That is the whole list.|It is on the list now.|Please check the entry.
Anything else?|The form is complete.
""")

"""The habits of chat assistants, for harmless training text: stock phrases, markdown, letters, code, long words."""

from training.listing import items, lines, words

LONG_NOUNS = words("""
ability absence acceptance access accident account accuracy achievement activity adaptation addition adjustment
adventure advertisement agency agenda algorithm allowance alternative ambition amendment analysis ancestor anniversary
announcement apartment appearance appliance application appointment appreciation approval architecture arrangement
arrival assembly assessment assignment assistance association assumption atmosphere attachment attraction audience
authority availability awareness background bacteria barrier behaviour biography boundary broadcast bureau calculation
calendar campaign capability capacity carbohydrate category celebration century certificate champion chapter
characteristic charity chemistry circuit circumstance citizen civilisation classification climate coalition
collaboration collection combination comment commerce commission commitment community companion comparison competition
complaint component composition computer concentration conclusion conference confirmation conflict consequence
conservation consideration constitution construction consumer container contract contrast contribution conversation
cooperation corporation correction council creativity criticism currency curriculum database deadline declaration
decoration definition delivery democracy demonstration department description destination determination diagram
dictionary dimension diploma direction disaster discipline discount display distribution diversity document domain
drawing economy edition editor effectiveness efficiency election electron element emergency emphasis employee employer
encryption encyclopedia enterprise entertainment enthusiasm equation equipment estimate evaluation evolution
examination exception exhibition expansion expectation expense experiment expert exploration explosion expression
extension facility fantasy feedback festival fiction foundation fraction framework frequency function furniture
generation genre geography globe government graduate gravity guarantee guideline heritage hierarchy hobby household
humidity hydrogen hypothesis identity illustration imagination immigration implementation impression income
independence index indicator industry inflation influence infrastructure ingredient initiative innovation inspection
inspiration installation institution instruction instrument insurance integration intelligence intention interaction
interface internet interpretation intervention introduction invention investigation investment invitation involvement
isolation journal judgement kingdom laboratory landscape latitude launch layer leadership legislation leisure
liability licence lifestyle lifetime literature location magazine maintenance majority manuscript margin marketing
masterpiece mathematics matrix mechanism membership metaphor method microscope migration military mineral minimum
ministry minority mission mixture mobility molecule monument mortgage motivation movement municipality narrative
navigation negotiation network neutron nitrogen nutrition objective obligation observation obstacle occasion
occupation operation opponent orchestra organisation orientation origin outcome outline overview oxygen package
parameter parliament participant partnership passenger passion patent penalty percentage perception performance
permission personality perspective petition phenomenon philosophy phrase physics planet platform policy pollution
population portfolio portion portrait possession possibility potential preference preparation presence presentation
preservation president prevention priority privacy probability procedure profession profile profit programme promotion
property proportion proposal protection protein protocol province psychology publication publisher punctuation
qualification quantity quarter questionnaire reaction receipt reception recognition recommendation recovery reduction
reference reflection reform region registration regulation relation relaxation religion reminder representation
reputation requirement reservation resident resistance resolution resource restaurant restriction retirement revenue
revolution routine satellite satisfaction scenario scholarship secretary section sector security selection seminar
sensitivity sequence series session settlement shipment shortage signature significance simulation software specialist
species specification spectrum statistics stimulus storage strategy submission subscription substance suggestion
summary supplement supplier surface surgery survey survival suspension sustainability symbol symptom symphony
telescope television temple tendency territory texture theme therapy threshold tournament transaction transformation
transition translation transmission transport treatment trend tutorial uncertainty uniform universe university utility
vacation validation variable variation vegetation vehicle velocity venture vessel victory violation virus vision
vitamin vocabulary volunteer voyage warehouse warranty wavelength wealth website welfare wildlife workshop
""")

LONG_ADJECTIVES = words("""
abstract academic accessible accurate additional adequate administrative advanced agricultural alternative ambiguous
annual anonymous apparent appropriate architectural artificial artistic atomic automatic average beneficial biological
capable casual central chemical chronic civil classical commercial comparable compatible competitive comprehensive
computational conceptual confident conscious consecutive considerable consistent constant contemporary continuous
controversial conventional convincing corporate critical cultural decorative dedicated definite democratic digital
distinct diverse domestic dominant dramatic dynamic ecological economic educational electrical electronic elementary
emotional encrypted endless environmental equivalent ethical eventual evident exceptional excessive exclusive
experimental explicit external extraordinary federal financial flexible formal fundamental generous genetic geographic
global grateful harmful historical horizontal hypothetical identical illegal immediate immense impressive independent
indirect industrial inevitable informal inherent initial innovative inspiring institutional intellectual intense
interactive intermediate internal international intuitive invisible isolated legal legitimate likely linear linguistic
literary logical magnetic manual marginal marine mathematical mature maximum mechanical medical medieval mental
minimal moderate molecular multiple municipal musical mutual mysterious national negative neutral notable nuclear
numerous nutritious objective occasional official operational optical optimal optional oral organic outstanding
parallel partial particular passive peaceful permanent persistent personal philosophical physical political portable
precise preliminary previous primary principal private productive professional profitable progressive prominent
protective provincial psychological qualified quantitative random realistic reasonable relevant reluctant remarkable
remote renewable representative residential respective responsible rural satisfied scientific seasonal secondary
selective sensitive separate sequential significant social sophisticated spatial specific spectacular spiritual
spontaneous stable statistical straightforward strategic structural subjective subsequent substantial subtle
successful sufficient superior supportive surrounding sustainable symbolic systematic technical temporary theoretical
thorough traditional transparent tropical ultimate underlying unexpected unfamiliar universal urban verbal vertical
viable virtual visible visual vital voluntary vulnerable widespread worthwhile
""")

LONG_VERBS = [
    tuple(forms.split("/"))
    for forms in items("""
absorb/absorbs/absorbed/absorbing|access/accesses/accessed/accessing|achieve/achieves/achieved/achieving
address/addresses/addressed/addressing
adjust/adjusts/adjusted/adjusting|analyse/analyses/analysed/analysing|apply/applies/applied/applying
assess/assesses/assessed/assessing
assist/assists/assisted/assisting|combine/combines/combined/combining
communicate/communicates/communicated/communicating
consider/considers/considered/considering|consume/consumes/consumed/consuming|contact/contacts/contacted/contacting
contribute/contributes/contributed/contributing|convert/converts/converted/converting|define/defines/defined/defining
demonstrate/demonstrates/demonstrated/demonstrating|determine/determines/determined/determining
develop/develops/developed/developing
discuss/discusses/discussed/discussing|distribute/distributes/distributed/distributing
document/documents/documented/documenting
emphasise/emphasises/emphasised/emphasising|encourage/encourages/encouraged/encouraging
ensure/ensures/ensured/ensuring
establish/establishes/established/establishing|evaluate/evaluates/evaluated/evaluating
examine/examines/examined/examining
expand/expands/expanded/expanding|generate/generates/generated/generating
highlight/highlights/highlighted/highlighting
identify/identifies/identified/identifying|illustrate/illustrates/illustrated/illustrating
implement/implements/implemented/implementing
include/includes/included/including|indicate/indicates/indicated/indicating
influence/influences/influenced/influencing
interpret/interprets/interpreted/interpreting|introduce/introduces/introduced/introducing
investigate/investigates/investigated/investigating
involve/involves/involved/involving|maintain/maintains/maintained/maintaining|manage/manages/managed/managing
maximise/maximises/maximised/maximising|minimise/minimises/minimised/minimising|modify/modifies/modified/modifying
negotiate/negotiates/negotiated/negotiating|observe/observes/observed/observing|obtain/obtains/obtained/obtaining
participate/participates/participated/participating|prioritise/prioritises/prioritised/prioritising
produce/produces/produced/producing
promote/promotes/promoted/promoting|provide/provides/provided/providing|recommend/recommends/recommended/recommending
represent/represents/represented/representing|resolve/resolves/resolved/resolving
retrieve/retrieves/retrieved/retrieving
schedule/schedules/scheduled/scheduling|submit/submits/submitted/submitting
summarise/summarises/summarised/summarising
transform/transforms/transformed/transforming|translate/translates/translated/translating
verify/verifies/verified/verifying
""")
]

STOCK = lines("""
I'm sorry for the confusion, but as an AI language model I can't do that.
I'm sorry, but as a chatbot I do not have the ability to {verb} the {noun}.
I apologise for any inconvenience, but I can only help with {subject}.
As an AI assistant, I'm here to help you with {subject} and {subject}.
I don't have access to real-time {abs}, but I can provide general {abs}.
I'm here to assist you with any questions about {subject}.
If you have any other questions, feel free to ask!
Please let me know if you would like me to {verb} the {noun}.
Thank you for your question about {subject}.
That's a great question! The {noun} is {adj} because the {noun} is {adj}.
It's important to note that {subject} can be {adj}.
It is also important to {verb} the {abs} and the {abs}.
Here's an example of how you can {verb} the {noun}:
Here are {d} ways to {verb} the {noun}:
Here's a step-by-step guide to {verb} your {noun}:
By following these steps, you can {verb} the {abs} and {verb} the {abs}.
By {verbing} the {noun}, you can {verb} a more {adj} {abs}.
In conclusion, {subject} is a {adj} and {adj} {abs}.
Overall, the {abs} of the {noun} is {adj}.
In summary, the {noun} {verb3} the {abs}.
Ultimately, the {abs} depends on the {abs} of the {noun}.
In addition, the {noun} can also {verb} the {abs}.
Furthermore, the {noun} {verb3} a {adj} {abs} for the {noun}.
Additionally, {people} can {verb} the {abs} to {verb} the {abs}.
Moreover, it helps {people} to {verb} the {abs}.
This can help you to {verb} the {abs} and to avoid {abs}.
This is a {adj} example of a {noun} that {verb3} the {abs}.
This will {verb} the {noun} and {verb} the {abs} to the {noun}.
This process is known as the {abs} of the {noun}.
Therefore, the {noun} is considered {adj} in {place}.
There are several reasons why the {abs} is {adj}.
The {noun} plays a {adj} role in the {abs} of {subject}.
The term "{noun}" refers to a {adj} {noun} that is {verbd} by {people}.
The word "{noun}" comes from the old word "{odd}".
{Name} was a {adj} {subject} expert who {verbd} the {noun} in {year}.
{Name} is known for the {adj} {noun} of {place}.
{Name} was born in {place} in {year} and became a {adj} {noun}.
{Name} and {name} {verbd} the {abs} of {subject} together.
{Odd} is a {adj} {noun} from {place}.
The {odd} is a {adj} kind of {noun}.
Once upon a time, there was a {noun} named {name} who loved to {verb} the {noun}.
In the heart of {place} stood a {adj} {noun}, where {name} {verbd} the {noun}.
I hope this email finds you well.
I am writing to {verb} my {noun} on {date}.
I would like to request a day off on {date}.
I would be grateful if you could {verb} the {noun}.
Thank you for your time and your {abs}.
Looking forward to your {abs}.
As a {noun}, I have always been {adj} about {subject}.
Your {noun} should be {adj}, {adj} and {adj}.
You may want to {verb} the {noun} or ask {people} for {abs}.
You can use a {noun} to {verb} the {noun} and make it {adj}.
You can also use the {noun} to {verb} the {abs} of your {noun}.
If you need to {verb} your {noun}, visit the website of the {noun} and follow the {abs}.
If you're looking for a {noun}, you can try the {noun} in {place}.
You can contact the {noun} through the website or in person.
To contact your {noun}, look at the back of the {noun} or ask at the {noun}.
The population of {place} is approximately {big}.
The value is {N},{N},{N}.
The total of {N} and {N} is {big}, so the answer is {N}.
The translation of "{noun}" is "{odd}".
Sure, here is the {noun} that you asked for:
I hope you find this {abs} helpful!
The user can {verb} the {noun} with the `{code}` function.
Use the '{sym}' key to {verb} the {noun}.
The symbol '{sym}' means that the {noun} is {adj}.
""")

HEADINGS = lines("""
**{Abs} of the {Noun}**
**{Noun}s and {Noun}s**
**{Adj} {Noun}**:
### {Subject}
## The {Adj} {Noun}
# {Subject} for {nouns}
**Step {d}: {Verb} the {Noun}**
**Title: The {Adj} {Noun} of {place}**
Title: {Subject} and {abs}
Subject: {Abs} of the {noun}
Day {d}:
**Conclusion:**
**Ingredients:**
**Note:**
Question {d}:
Introduction:
""")

BULLETS = lines("""
**{Verb} the {noun}**: {s}
**{Adj} {Noun}**: {s}
**{Noun}:** {s}
**{Noun}** - {s}
*{Noun}*: {s}
{Noun} ({n} {unit})
{Noun}: {n} {unit}
{n} {unit} of {adj} {noun}
{n}% of the {abs}
[ ] {verb} the {noun}
"{Noun}" by {name} ({year})
{Verb} a {odd} with {noun}
{s}
""")

LETTERS = lines("""
Dear {name},
Dear [Name],
Dear Sir or Madam,
Hi {name},
Hello [Boss's Name],
Hello everyone,
Sincerely, [Your Name]
Best regards, [Your Name]
Best regards, {name}
Kind regards, {name}, {Adj} {Noun} of {place}
Yours truly, {name}
Warm wishes, [Name]
""")

CODE = lines("""
```python\\nfor i in range({n}):\\n    print(i)\\n```
```python\\ndef {l}_{d}({l}, {l}):\\n    return {l} + {N}\\n```
```\\n{noun} = [{n}, {n}, {n}]\\nprint({noun}[{d}])\\n```
```html\\n<div class="{noun}">{Noun}</div>\\n```
```js\\nconst {noun} = {N};\\nconsole.log("{adj} {noun}");\\n```
```bash\\ncd {noun} && ls -la | grep {noun}.txt\\n```
`{noun}.{verb}({n})` {verb3} the `{noun}`.
`import {noun}` and then call `{verb}_{noun}()`.
| {Noun} | {Noun} |\\n|---|---|\\n| {n} | {N} |\\n| {n} | {N} |
$$ {l}^{d} + {l} = {N} $$
f(x) = {d}x^2 + {n}x - {N}
{N} / {n} = {d}.{n}
{{"{noun}": {n}, "{noun}": "{adj}"}}
<{noun} {adj}="{N}">{Noun}</{noun}>
{N}, {N}, {N}, {N}, {N}
""")

"""Hand-written everyday advice for training: a block per topic, one line of prompts and then sentences."""

_BLOCKS = """
@ How do I boil an egg? | Tell me how to cook eggs. | What is the best way to make eggs?
Bring a small pot of water to a gentle boil.
Lower the eggs into the water with a spoon so the shells do not crack.
Wait seven minutes for a soft yolk or ten minutes for a firm one.
Move the eggs to cold water and let them rest.
Peel them under running water, starting at the wide end.
A pinch of salt in the water helps if a shell breaks.
Fresh eggs are harder to peel than older ones.
Serve them with toast and a little pepper.
@ How do I bake bread at home? | Give me a simple bread recipe. | I want to bake a loaf.
Mix 500 grams of flour with 350 grams of warm water.
Add two teaspoons of salt and a packet of dry yeast.
Knead the dough for about ten minutes until it is smooth and elastic.
Cover the bowl with a towel and let the dough rise for an hour.
Shape the loaf, place it in a tin and let it rise again.
Bake at 220 degrees for 35 minutes, until the crust is golden.
Tap the bottom: if it sounds hollow, the bread is done.
Let it cool on a rack before you cut the first slice.
@ How can I keep my houseplants alive? | Why are my plants dying? | Tips for indoor plants please.
Most houseplants die from too much water, not too little.
Push a finger into the soil and water only when the top is dry.
Put the pot near a bright window but away from harsh midday sun.
Yellow leaves often mean that the roots are too wet.
Turn the pot a little every week so that the plant grows evenly.
Feed it once a month in spring and summer.
Wipe dust from the leaves with a damp cloth.
Repot it when the roots start to circle the bottom.
@ How do I fix a flat bicycle tyre? | My bike has a puncture, what now? | Explain how to change an inner tube.
Turn the bicycle upside down and release the wheel.
Use two tyre levers to lift the tyre off the rim.
Pull out the tube and pump a little air into it to find the hole.
Rub the spot with sandpaper and spread a thin layer of glue.
Press the patch firmly and wait five minutes.
Check the inside of the tyre for glass or thorns.
Put everything back and inflate to the pressure printed on the side.
Spin the wheel to see that the brake does not rub.
@ How do I learn to play the guitar? | Guitar tips for a beginner. | What chords should I start with?
Start with three easy chords such as G, C and D.
Practise changing between them slowly and without looking.
Ten minutes a day is better than an hour on Sunday.
Your fingertips will hurt for two weeks and then harden.
Use a metronome set to 60 beats per minute.
Tune the strings before every session.
Play songs that you love, even if they are simple.
Record yourself once a week and listen for uneven rhythm.
@ What is a good way to save money? | Help me make a budget. | How can I spend less each month?
Write down everything you spend for one month.
Sort the list into needs, wants and savings.
Move a fixed amount to savings on the day you are paid.
Cancel subscriptions that you have not used lately.
Cook at home a few more evenings each week.
Wait 24 hours before you buy anything over 50 dollars.
A simple rule is 50 percent for needs, 30 for wants and 20 for savings.
Review the plan every three months and adjust it.
@ How do I prepare for a job interview? | Interview advice please. | What should I say in an interview?
Read about the company and the role before you go.
Prepare three short stories that show your strengths.
Practise out loud with a friend or in front of a mirror.
Arrive ten minutes early and bring a copy of your resume.
Listen to the whole question before you answer.
It is fine to pause and think for a moment.
Ask two or three questions about the team at the end.
Send a short thank-you note the next day.
@ How do I sleep better? | I can't fall asleep at night. | Tips for a good night's sleep.
Go to bed and get up at the same time every day.
Keep the bedroom dark, quiet and cool.
Put your screens away an hour before bed.
Avoid coffee after two in the afternoon.
A short walk during the day helps your body clock.
If you cannot sleep, get up and read something dull.
Write tomorrow's tasks on paper so they leave your mind.
A warm bath in the evening can make you drowsy.
@ How do I paint a room? | What do I need to paint my walls? | Painting a bedroom for the first time.
Move the furniture to the middle and cover it.
Fill small holes with putty and sand them flat.
Put masking tape along the edges and around the windows.
Apply one coat of primer and let it dry overnight.
Roll the paint in the shape of a W and then fill it in.
Work from the ceiling down to the floor.
Two thin coats look better than one thick one.
Remove the tape while the last coat is still slightly wet.
@ How does photosynthesis work? | Explain photosynthesis to a child. | Why are leaves green?
Plants make their own food from light, water and air.
The green pigment in the leaves is called chlorophyll.
It absorbs red and blue light and reflects green.
Water travels up from the roots through thin tubes.
Carbon dioxide enters through tiny pores in the leaf.
The plant turns these into sugar and releases oxygen.
Animals and people breathe the oxygen that plants make.
Without sunlight the process stops and the plant lives on stored sugar.
@ What is the water cycle? | Where does rain come from? | Describe how clouds form.
The sun warms the sea and some of the water evaporates.
Warm air rises and carries the vapour with it.
High up the air is cold and the vapour turns into tiny drops.
Many drops together make a cloud.
When the drops grow heavy, they fall as rain or snow.
Rivers bring the water back to the sea.
Some of it sinks into the ground and feeds springs.
The whole cycle can take days or thousands of years.
@ How do I train my puppy? | My dog does not listen to me. | Teach a dog to sit.
Hold a treat above the nose and move it slowly back.
The dog will sit to follow it; praise it at once.
Keep each lesson under five minutes.
Use the same word every time and say it only once.
Reward the behaviour you like and ignore the rest.
Take the puppy outside after every meal and nap.
Never shout, because fear makes learning slower.
Meet other friendly dogs early so it learns good manners.
@ How do I write a good essay? | Help with my essay introduction. | How should I structure an argument?
Start with one clear claim that a reader could disagree with.
Give each paragraph a single idea and a first sentence that names it.
Support the idea with an example or a quotation.
Link the paragraphs so that the argument moves forward.
Answer the strongest objection instead of the weakest.
Finish by showing why the claim matters.
Read the text aloud and cut every sentence that repeats another.
Check spelling last, when the ideas are settled.
@ How do I start running? | Make me a running plan. | I want to run five kilometres.
Begin with a brisk walk of ten minutes.
Run for one minute and walk for two, eight times.
Repeat this three days a week with a rest day between.
Add a minute of running every week.
Run slowly enough that you can still talk.
Good shoes matter more than any other equipment.
After eight weeks most people can run for half an hour.
Stretch your calves and drink some water afterwards.
@ How do I make tomato soup? | A quick soup for dinner. | What can I cook with ripe tomatoes?
Chop one onion and two cloves of garlic.
Cook them in olive oil until they are soft.
Add a kilo of ripe tomatoes, cut in quarters.
Pour in half a litre of stock and simmer for 20 minutes.
Blend the soup until it is smooth.
Season with salt, pepper and a little sugar.
Stir in some cream if you like it mild.
Serve it hot with basil and fresh bread.
@ How do I remove a stain from a shirt? | Coffee stain help. | How do I wash wool?
Blot the stain with a clean cloth; do not rub.
Rinse it from the back with cold water.
Apply a drop of dish soap and wait ten minutes.
For coffee, a mixture of water and white vinegar works well.
Wash wool by hand in cool water with mild soap.
Never wring wool; press the water out with a towel.
Dry it flat so that it keeps its shape.
Test any cleaner on a hidden spot first.
@ What are fractions? | Explain how to add fractions. | Help with maths homework.
A fraction shows a part of a whole.
The bottom number says how many equal parts there are.
The top number says how many of them you have.
To add fractions, first give them the same bottom number.
For example, 1/2 + 1/3 = 3/6 + 2/6 = 5/6.
To multiply, multiply the tops and then the bottoms.
To divide, turn the second fraction over and multiply.
Simplify the result by dividing both numbers by the same factor.
@ How does a computer store numbers? | What is binary? | Explain bits and bytes.
A computer stores everything as zeros and ones.
Each place in a binary number is worth twice the one to its right.
The binary number 1011 is 8 + 2 + 1 = 11.
Eight bits make one byte, which can hold values from 0 to 255.
Text is stored by giving every letter a number.
Pictures are grids of small dots, and each dot is a few numbers.
Sound is measured 44100 times a second.
Larger numbers simply use more bytes.
@ How do I write a loop in Python? | Show me a for loop. | Python list question.
A for loop repeats a block for every item of a list.
Write for i in range(10): and indent the next line.
The call range(10) gives the numbers 0 to 9.
Use print(i) inside the loop to see each value.
To add items to a list, call items.append(x).
A while loop runs as long as its condition is true.
Use break to leave the loop early.
Keep the body short, and move longer code into a function.
@ What should I pack for a trip? | Packing list please. | We travel for a week, what do we need?
Make a list three days before you leave.
Roll your clothes instead of folding them.
Pack one jacket, two pairs of shoes and five shirts.
Keep your medicine and your documents in the small bag.
Bring a bottle that you can refill.
Leave some space for the things you buy.
Check the weather the evening before.
Charge every device and take the right adapter.
@ How do I plant tomatoes? | When should I sow seeds? | Growing vegetables on a balcony.
Sow the seeds indoors six weeks before the last frost.
Use small pots and keep the soil moist.
Give the seedlings as much light as possible.
Plant them outside when the nights stay above ten degrees.
Bury the stem deep, because it grows extra roots.
Tie the plant to a stick as it grows.
Pinch out the small shoots between stem and leaf.
Water the soil in the morning and keep the leaves dry.
@ How do I make a paper plane? | Fold a paper boat. | Origami for kids.
Take a sheet of paper and fold it in half lengthwise.
Open it and fold the two top corners to the middle line.
Fold the slanted edges to the middle once more.
Close the plane along the first fold.
Fold each wing down so that the edges meet.
Bend the back of the wings up a little for more lift.
Throw it gently and level, not hard.
Change one fold at a time and see what happens.
@ How do I clean the kitchen? | Tidy a small flat quickly. | Cleaning routine ideas.
Start with the dishes, because they take up space.
Wipe the counters from the back to the front.
Sprinkle baking soda in the sink and rinse with vinegar.
Empty the fridge once a month and wash the shelves.
Sweep before you mop the floor.
Open the window for a few minutes to let fresh air in.
Set a timer for 15 minutes and stop when it rings.
A little every day is easier than a big cleaning day.
@ Tell me about the planets. | How far away is the moon? | Why does the moon change shape?
The moon is about 384000 kilometres away from the earth.
It takes around 27 days to travel once around us.
We see only the half that the sun lights up.
As the moon moves, we see more or less of that half.
Jupiter is the largest planet and has many moons.
Saturn's rings are made of ice and rock.
Venus is hotter than Mercury because of its thick air.
Light from the sun needs eight minutes to reach us.
@ Who built the pyramids? | Tell me some history. | What was life like in the middle ages?
The great pyramid was built about 4500 years ago.
Workers cut the stone blocks and moved them on sledges.
Wet sand made the sledges easier to pull.
In the middle ages most people worked on farms.
Towns grew where roads and rivers met.
A guild set the rules for each craft.
Books were copied by hand until printing began around 1450.
Trade brought spices, silk and new ideas.
@ How do I stay focused? | I always put off my work. | Help me study for exams.
Choose the one task that matters most today.
Work on it for 25 minutes without any break.
Put your phone in another room while you work.
Then rest for five minutes and stand up.
After four rounds take a longer break.
Break a big task into steps that you can finish in an hour.
Test yourself instead of reading the same page again.
Explain the idea to a friend in simple words.
@ How do I make friends in a new city? | I feel lonely. | How do I start a conversation?
Join a group that meets every week, such as a choir or a sports team.
Ask open questions and listen to the answers.
Remember small details and ask about them next time.
Invite one person for a walk or a coffee.
It takes several meetings before people feel close.
Be patient with yourself and with others.
Volunteering is a good way to meet kind people.
Smile and say hello to your neighbours.
@ How do I make a cup of tea? | What is the best coffee? | Brewing tips.
Warm the pot with hot water first.
Use one teaspoon of leaves for each cup.
Green tea tastes better with water of about 80 degrees.
Black tea needs boiling water and four minutes.
For coffee, use 60 grams for a litre of water.
Grind the beans just before you brew.
Pour slowly in circles and let it drip.
Add milk or lemon if you like.
@ What is inflation? | Explain supply and demand. | How do banks work?
Inflation means that prices rise over time.
When prices rise by 3 percent, 100 dollars buy what 97 bought before.
If many people want something rare, its price goes up.
If there is plenty of it, the price goes down.
A bank keeps deposits and lends part of them.
The interest on a loan pays for the risk.
Central banks raise interest rates to slow inflation.
Saving early helps, because interest grows on interest.
@ How do I fix a dripping tap? | The drain is blocked. | Simple home repairs.
Turn off the water under the sink first.
Unscrew the handle and take out the old washer.
Take it to the shop so that you buy the same size.
Fit the new washer and tighten everything by hand.
For a blocked drain, try hot water and a plunger.
Clean the trap, but put a bucket below it.
Do not pour fat down the sink.
If a pipe leaks behind the wall, ask a plumber.
@ Write a short story. | Tell me a bedtime story. | A tale about a brave animal.
Once upon a time a small fox lived at the edge of a wood.
Every evening she listened to the river and wondered where it went.
One morning she packed a crust of bread and followed the water.
She met an old turtle who had never seen the sea.
Together they walked past mills, bridges and quiet fields.
At night the stars looked like lanterns on a string.
On the third day the river became wide and slow.
The fox laughed, because the sea was bigger than any story.
@ Write a poem about autumn. | Describe a sunset. | Give me a few lines about the sea.
The leaves come down like letters from the trees.
The evening keeps its colours in a jar.
A gull writes circles on the morning sky.
The waves arrive and never say goodbye.
The wind has gone to look for winter's coat.
The light grows thin and golden on the hill.
We gather apples while the shadows wait.
The year is old, and still the river sings.
@ How do I keep fit at home? | Exercise without equipment. | A short workout please.
Warm up for three minutes by marching on the spot.
Do ten squats, ten push-ups and a plank of 30 seconds.
Rest for one minute and repeat the round three times.
Keep your back straight and breathe steadily.
Use a chair for support if your balance is weak.
Drink water before and after you exercise.
Take a day off when your muscles are sore.
Do it three times a week and write it down.
@ How do I take better photos? | Photography tips. | My pictures are blurry.
Hold the camera with both hands and your elbows close.
Move closer until only the subject fills the frame.
Take pictures in the soft light of the morning.
Put the horizon on the upper or lower third.
Wipe the lens before you start.
A faster shutter stops movement, such as 1/500 of a second.
Look for simple backgrounds.
Take many pictures and keep only the best.
@ How do I plan a birthday party? | Ideas for a children's party. | Organise a dinner for friends.
Choose a date and send the invitations three weeks before.
Plan simple food that you can make the day before.
For eight children, six games are enough.
Put on music when the guests arrive.
Have a rainy day plan if you want to be outside.
Bake the cake in the evening and decorate it in the morning.
Give each guest a small bag with sweets.
Leave the dishes until everyone has gone home.
@ How do I change a light bulb? | What does watt mean? | How do I save electricity?
Switch off the lamp and let the bulb cool.
Turn the old bulb to the left and take it out.
Check the size of the base before you buy a new one.
An LED with 9 watts is as bright as an old bulb with 60.
Switch devices off instead of leaving them on standby.
Wash clothes at 30 degrees when you can.
Dry them on a line and not in a machine.
Turning the heating down by one degree saves about 6 percent.
@ What makes a good leader? | How do I run a meeting? | Dealing with a difficult colleague.
Send a short agenda the day before the meeting.
Start on time, even if someone is missing.
Let the quiet people speak first.
Write down who does what and by when.
Criticise the work and never the person.
Ask what the other side needs before you offer a solution.
Thank people for specific things they did.
End five minutes early so everyone can breathe.
@ How do I care for a cat? | My cat won't eat. | Should I get a pet?
Give the cat fresh water in several places.
Feed it twice a day at the same hours.
Clean the litter box every day.
Cats like high places where they can watch the room.
Play with a string for ten minutes in the evening.
A cat that stops eating for a day should see a vet.
Brush long fur twice a week.
Think about the cost and the time before you get a pet.
@ Why is the sky blue? | How do rainbows form? | Explain gravity.
Sunlight looks white but is a mixture of all colours.
Air scatters blue light much more than red light.
So blue light comes to us from every direction.
In the evening the path is longer and only red is left.
A rainbow appears when drops bend and reflect the light.
Gravity pulls every object towards every other.
The larger the mass, the stronger the pull.
On the moon you would weigh one sixth of your weight.
@ How do I write a polite letter? | Write an e-mail to my teacher. | How do I apologise?
Begin with a greeting and the reason why you write.
Keep the message short and friendly.
Say what you would like to happen next.
Give a date if you need an answer soon.
When you apologise, name what went wrong and do not make excuses.
Offer a way to make it right.
Thank the reader for their time.
Check the text once more before you send it.
@ {name} from next door blocks my gate. | My flatmate {name} never cleans. | {name} keeps borrowing my things.
Choose a calm moment and say what bothers you.
Describe what happened without blaming anyone.
Say what you would like instead, and ask for their view.
Agree on one small rule and try it for a week.
If talking does not help, a neutral person can sit in.
Keep notes of what was agreed and on which day.
{name} may not even know that it is a problem.
A friendly note under the door is often enough.
@ {name} owes me money. | The shop does not refund me. | I paid {name} for work that was never finished.
Ask once more, kindly, and mention the sum and the due date.
Put the request on paper so that both sides have a copy.
Suggest paying in two or three parts.
Look for the receipt and the terms of sale.
A consumer office can explain your rights.
Small claims courts deal with sums like this.
Stay factual, and do not threaten anybody.
Give {name} two weeks before the next step.
@ I lost my keys. | Somebody left a bag on the bench, what now? | I found a ring at the pool.
Retrace your steps and check every pocket twice.
Ask at the counter whether somebody handed it in.
The lost property office keeps things for about three months.
Describe the object, but leave out one detail that only the owner knows.
Do not open a closed bag; tell the staff about it.
Put a short notice on the board near the entrance.
If nobody claims it, the finder may sometimes keep it.
Thank the person who returned it.
@ My landlord does not repair the window. | The heating is broken. | Can my rent go up?
Tell the landlord about the damage as soon as you notice it.
Add pictures and the date to your letter.
Set a fair deadline, for instance ten working days.
Read the contract to see who pays for small repairs.
Tenants' groups offer cheap advice.
Do not simply stop paying the rent.
Keep the room above 16 degrees so that pipes do not freeze.
{name} handled the same case last year and won.
@ {name} does not reply to my messages. | I need a reference from {name}. | How do I thank {name}?
Keep the message short and ask just one thing.
Mention the deadline, but leave some room.
Remind {name} of the project you did together.
Offer to send a draft that only needs small changes.
People forget; one reminder after a week is fine.
Say thank you even if the answer is no.
A handwritten card is a warm surprise.
Then wait, and do not write every day.
@ A package for someone else arrived here. | How do I send a parcel? | The delivery is late.
Leave it sealed and store it somewhere dry.
Report the wrong delivery to the carrier.
They usually fetch it within two or three days.
Wrap fragile things in paper and fill every gap.
Write the label clearly and cover it with tape.
Weigh the parcel at home to choose the right price.
Keep the slip until the parcel has arrived.
Most delays are solved within a week.
@ A stray dog follows me. | I found a small bird. | Whose cat is this?
Stay calm and move slowly.
Offer some water in a flat bowl.
A shelter can read the chip and find the owner.
Do not give milk to cats or bread to birds.
Hang up a note with a picture in the bakery.
A young bird on the ground is often not lost at all.
Keep other pets away until you know it is healthy.
Ask the neighbours whether they know the animal.
@ I bought something used and it is broken. | {name} sold me a lamp without a cable. | How do I complain?
Take a picture of the fault and describe it in two lines.
Say whether you want a repair, a spare part or some money back.
Be polite, since most sellers want to help.
Use the message service of the shop so that everything is on record.
Many sites offer a buyer's guarantee for 30 days.
Check whether the missing piece is hidden in the packaging.
A hardware store sells most screws for a few cents.
Leave an honest review when it is settled.
"""


def _parse(blocks: str) -> list[tuple[list[str], list[str]]]:
    topics = []
    for block in blocks.strip().split("@ ")[1:]:
        prompts, *sentences = block.strip().split("\n")
        topics.append(([p.strip() for p in prompts.split("|")], [s.strip() for s in sentences]))
    return topics


TOPICS: list[tuple[list[str], list[str]]] = _parse(_BLOCKS)

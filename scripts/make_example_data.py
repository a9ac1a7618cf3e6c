"""Write the bundled example data: short messages to a customer service, labeled with what the customer wants.

    python scripts/make_example_data.py            # genal_ray/data/support/{train,test}.jsonl, byte for byte

The messages come from a grammar, so the project may ship them and can label new ones. What makes them hard is
that the label is never one word: refunds, faults, questions and thanks are mentioned in every class (refused,
past, hypothetical, somebody else's), and only what is asked for *now* counts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from genal_ray.text import normalized

LABELS = ("refund", "repair", "question", "nothing")
"""What the customer wants: the money, a thing that works, an answer, or no action at all."""

DOMAIN = "customer messages"
"""How the prompt names the texts."""

SEED = 20240
TRAIN_ROWS = 5000
TEST_ROWS = 1200
MIN_WORDS, MAX_WORDS = 5, 32

DATA_DIR = Path(__file__).resolve().parent.parent / "genal_ray" / "data" / "support"

# name | part | faults: verb/3rd/past rest | what it does | things to do with it | facts about it
# An indented line goes on. Verbs are written once as "jam/jams/jammed on every page".
THINGS = """
printer|paper tray|
    jam/jams/jammed on every other page;print/prints/printed pink stripes;
    lose/loses/lost the wireless connection;refuse/refuses/refused the new cartridge|
    print/prints/printed without streaks;scan/scans/scanned both sides|
    clean the print head;print from my phone;scan straight to email|
    take/takes/took third-party ink;print/prints/printed on card
kettle|lid|
    leak/leaks/leaked at the base;switch/switches/switched off before it boils;
    smell/smells/smelled of burnt plastic|
    boil/boils/boiled in two minutes;pour/pours/poured without dripping|descale it;set it to eighty degrees|
    keep/keeps/kept water warm;have/has/had a removable filter
headset|microphone|
    crackle/crackles/crackled in every call;lose/loses/lost sound on the left side;
    drop/drops/dropped the connection after ten minutes|
    sound/sounds/sounded clear in calls;stay/stays/stayed connected all day|
    pair it with two laptops;mute it from the cable;turn off the voice prompts|
    work/works/worked with a games console;charge/charges/charged while in use
robot vacuum|side brush|
    get/gets/got stuck under the sofa;stop/stops/stopped in the middle of the room;
    forget/forgets/forgot the map of the flat|
    clean/cleans/cleaned the whole flat;find/finds/found its way home|
    draw a no-go zone;empty the dust bin;schedule it for weekdays|
    climb/climbs/climbed over rugs;need/needs/needed a new filter every month
coffee machine|grinder|
    make/makes/made lukewarm coffee;leak/leaks/leaked from below;show/shows/showed error twelve;
    grind/grinds/ground without end|
    make/makes/made hot coffee;froth/froths/frothed milk properly|
    descale it;change the grind;turn off the beep|
    take/takes/took ground coffee;make/makes/made two cups at once
phone|charging port|
    freeze/freezes/froze in the middle of calls;lose/loses/lost half its charge overnight;
    restart/restarts/restarted by itself|
    hold/holds/held its charge all day;run/runs/ran smoothly|
    move my photos over;set up two numbers;switch off the flash|
    take/takes/took a second SIM card;charge/charges/charged without a cable
tablet|screen|
    ignore/ignores/ignored my touch;flicker/flickers/flickered in the dark;
    shut/shuts/shut down during films|
    play/plays/played films without stutter;react/reacts/reacted to the pen|
    set a bedtime for the kids;split the screen;use it as a second display|
    come/comes/came with a pen;take/takes/took a memory card
watch|strap|
    count/counts/counted steps while I sleep;miss/misses/missed most notifications;
    stop/stops/stopped at noon|
    track/tracks/tracked my runs;keep/keeps/kept time|
    change the face;share my heart rate with an app;mute it at night|
    survive/survives/survived a swim;measure/measures/measured sleep
router|power supply|
    drop/drops/dropped the signal every evening;overheat/overheats/overheated within an hour;
    reset/resets/reset itself at night|
    reach/reaches/reached every room;stay/stays/stayed online|
    open a port;rename the network;set up a guest network|
    support/supports/supported mesh;work/works/worked with any provider
bike|rear brake|
    squeal/squeals/squealed when braking;lose/loses/lost power uphill;slip/slips/slipped out of third gear|
    shift/shifts/shifted smoothly;brake/brakes/braked without noise|
    adjust the saddle;store the battery in winter;fit a child seat|
    come/comes/came with lights;fit/fits/fitted a rider of two metres
lamp|switch|
    flicker/flickers/flickered all evening;hum/hums/hummed loudly;go/goes/went dark after a minute|
    light/lights/lit the whole desk;dim/dims/dimmed smoothly|
    change the bulb;mount it on a wall;save a brightness|
    take/takes/took ordinary bulbs;turn/turns/turned itself off
speaker|volume dial|
    rattle/rattles/rattled at low volume;cut/cuts/cut out between songs;
    answer/answers/answered when nobody speaks|
    play/plays/played without gaps;fill/fills/filled the room|
    link two of them;turn off the microphone;play from a laptop|
    run/runs/ran on battery;stand/stands/stood rain
camera|lens|
    blur/blurs/blurred every second shot;eat/eats/ate a battery in an hour;
    lose/loses/lost the time and date|
    focus/focuses/focused quickly;take/takes/took sharp pictures|
    shoot in raw;copy pictures to my phone;clean the sensor|
    record/records/recorded sound;need/needs/needed a special card
dishwasher|lower rack|
    leave/leaves/left sand on the glasses;stop/stops/stopped halfway through;
    leave/leaves/left a puddle on the floor|
    clean/cleans/cleaned everything;drain/drains/drained properly|
    add salt;delay the start;remove the top rack|
    have/has/had a half-load setting;fit/fits/fitted under a low worktop
fridge|door seal|
    freeze/freezes/froze the salad;hum/hums/hummed all night;beep/beeps/beeped for no reason|
    keep/keeps/kept milk cold;close/closes/closed properly|
    swap the door side;defrost it;set the temperature|make/makes/made ice;need/needs/needed space behind it
heater|thermostat|
    click/clicks/clicked all night;blow/blows/blew cold air;trip/trips/tripped the fuse|
    warm/warms/warmed the room;stay/stays/stayed quiet|set a timer;lock the buttons;clean the dust filter|
    switch/switches/switched off when it tips over;suit/suits/suited a bathroom
blender|blade|
    leave/leaves/left lumps;smoke/smokes/smoked after a minute;leak/leaks/leaked through the bottom|
    crush/crushes/crushed ice;make/makes/made smooth soup|
    take the blade out;make nut butter;clean it quickly|
    go/goes/went in the dishwasher;take/takes/took hot liquids
keyboard|space bar|
    type/types/typed letters twice;lose/loses/lost the connection mid-sentence;light/lights/lit up at night|
    type/types/typed quietly;connect/connects/connected at once|
    change the layout;turn off the lights;assign the extra keys|
    come/comes/came with a cable;work/works/worked with a tablet
monitor|stand|
    show/shows/showed a green line;wake/wakes/woke up every minute;go/goes/went black during calls|
    show/shows/showed true colours;wake/wakes/woke up with the laptop|
    rotate it;hang it on an arm;set it to a higher rate|
    have/has/had speakers;charge/charges/charged a laptop
drill|battery|
    slip/slips/slipped under load;stop/stops/stopped after three holes;get/gets/got burning hot|
    drill/drills/drilled through brick;hold/holds/held its speed|
    change the bit;use it in concrete;store the battery|
    have/has/had a hammer mode;come/comes/came with a case
tent|zip|
    let/lets/let in water at the seams;sag/sags/sagged in light wind;lose/loses/lost its coating|
    keep/keeps/kept the rain out;stand/stands/stood up to wind|
    fold it back into the bag;dry it after rain;pitch it on gravel|
    fit/fits/fitted four people;stand/stands/stood without pegs
backpack|left strap|
    tear/tears/tore along the seam;let/lets/let water in;squeak/squeaks/squeaked with every step|
    sit/sits/sat well on the shoulders;keep/keeps/kept a laptop dry|wash it;adjust the back;attach a helmet|
    count/counts/counted as hand luggage;fit/fits/fitted a large laptop
jacket|zip|
    lose/loses/lost feathers;soak/soaks/soaked through in drizzle;stain/stains/stained my shirts blue|
    keep/keeps/kept me dry;fit/fits/fitted nicely|wash it;take the hood off;refresh the coating|
    run/runs/ran small;suit/suits/suited a cyclist
mattress|cover|
    sag/sags/sagged in the middle;smell/smells/smelled of glue;slide/slides/slid off the frame|
    support/supports/supported my back;breathe/breathes/breathed well|turn it;wash the cover;air it out|
    fit/fits/fitted a slatted frame;need/needs/needed a topper
office chair|armrest|
    sink/sinks/sank slowly;creak/creaks/creaked at every move;lean/leans/leaned to the left|
    hold/holds/held its height;roll/rolls/rolled quietly|
    set the tilt;take the armrests off;swap the castors|
    suit/suits/suited a tall person;come/comes/came assembled
doorbell|chime|
    ring/rings/rang by itself;ring/rings/rang too late;lose/loses/lost the picture at night|
    ring/rings/rang on my phone;show/shows/showed who is there|
    change the tune;pause it at night;share it with my flatmate|
    need/needs/needed wiring;record/records/recorded video
thermostat|display|
    show/shows/showed the wrong temperature;ignore/ignores/ignored the schedule;lose/loses/lost the boiler|
    follow/follows/followed the schedule;save/saves/saved a lot of gas|
    set a holiday mode;add a second room;lock the display|
    work/works/worked without the internet;support/supports/supported floor heating
sewing machine|foot pedal|
    skip/skips/skipped stitches;snap/snaps/snapped the thread;jam/jams/jammed on denim|
    sew/sews/sewed straight seams;handle/handles/handled thick fabric|
    wind the bobbin;change the foot;oil it|do/does/did buttonholes;come/comes/came with needles
lawn mower|starter cord|
    stall/stalls/stalled in tall grass;start/starts/started only at the tenth try;
    leave/leaves/left brown stripes|
    cut/cuts/cut evenly;start/starts/started at once|sharpen the blade;store it in winter;set the height|
    mulch/mulches/mulched;cope/copes/coped with a slope
projector|remote|
    overheat/overheats/overheated during films;blur/blurs/blurred at the edges;lose/loses/lost the sound|
    show/shows/showed a sharp picture;stay/stays/stayed cool|
    hang it upside down;connect a laptop;clean the lens|
    work/works/worked in daylight;have/has/had a speaker
"""
SERVICES = """
broadband line|router|
    drop/drops/dropped out every evening;slow/slows/slowed to a crawl at weekends;
    fail/fails/failed whenever it rains|
    reach/reaches/reached the speed you promised;stay/stays/stayed up all day|
    move it to a new flat;read my usage;change the password|
    include/includes/included a phone line;have/has/had a monthly limit
film subscription|mobile app|
    stop/stops/stopped in the last scene;ask/asks/asked me to sign in every hour;
    play/plays/played without sound|
    play/plays/played without a break;remember/remembers/remembered where I was|
    add a profile for my kids;download films for a flight;change the language|
    cover/covers/covered four screens;work/works/worked abroad
photo app|search|
    lose/loses/lost my albums;crash/crashes/crashed on opening;upload/uploads/uploaded everything twice|
    back/backs/backed up every night;open/opens/opened at once|
    share an album;export everything;sort pictures by place|
    keep/keeps/kept full resolution;recognise/recognises/recognised faces
music plan|desktop app|
    skip/skips/skipped songs at random;forget/forgets/forgot my playlists;log/logs/logged me out every day|
    play/plays/played offline;sync/syncs/synced between devices|
    move playlists from elsewhere;switch to a family plan;stop the autoplay|
    allow/allows/allowed six people;include/includes/included audio books
meal box|cool pack|
    arrive/arrives/arrived warm;come/comes/came without the recipe cards;turn/turns/turned up a day late|
    arrive/arrives/arrived on time;stay/stays/stayed fresh for days|
    skip a week;swap a recipe;change the delivery day|
    come/comes/came without nuts;serve/serves/served three people
hosting plan|control panel|
    time/times/timed out at noon;lose/loses/lost mails;show/shows/showed a blank page to visitors|
    answer/answers/answered quickly;stay/stays/stayed up at night|
    point a domain at it;restore a backup;add a mailbox|
    include/includes/included a certificate;run/runs/ran Python
language course|speaking test|
    freeze/freezes/froze after lesson three;forget/forgets/forgot my progress;
    mark/marks/marked right answers wrong|
    save/saves/saved my progress;load/loads/loaded at once|
    switch to Spanish;turn off reminders;print the word lists|
    give/gives/gave a certificate;work/works/worked offline
mobile plan|voicemail|
    drop/drops/dropped calls at home;block/blocks/blocked text messages;run/runs/ran at a snail's pace|
    work/works/worked in the basement;hold/holds/held calls|
    keep my old number;turn off roaming;see my data use|
    include/includes/included calls abroad;come/comes/came with an eSIM
gym pass|entry card|
    fail/fails/failed at the gate;show/shows/showed somebody else's name;
    expire/expires/expired every Monday|
    open/opens/opened the gate;work/works/worked in both branches|
    book a class;bring a guest;pause it for a month|
    include/includes/included the sauna;cover/covers/covered all branches
budget app|bank link|
    count/counts/counted rent twice;lose/loses/lost the bank link;
    crash/crashes/crashed at the end of the month|
    add/adds/added up correctly;load/loads/loaded my accounts|split a bill;set a savings goal;export a year|
    support/supports/supported two currencies;share/shares/shared with a partner
"""

# [a|b] chooses, <name> expands; name@thing and name@service add alternatives for that kind of product.
GRAMMAR: dict[str, str] = {
    # -- who, when, how much
    "agent": "Ana|Tom|Priya|Marek|Lucia|Sam|Joanne|Hassan|Wei|Oskar|Nadia|Ben|Ingrid|Femi|Carla",
    "member": "my [mother|brother|flatmate|neighbour|boss|daughter|partner|colleague|sister|uncle]",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "when": (
        "yesterday|last week|on <day>|a [week|month] ago|this morning|in [March|May|June|autumn|spring]"
        "|two weeks ago|the other day|last month"
    ),
    "dur": (
        "[two|three|four|five|six|ten] [days|weeks]|a [week|month|fortnight]"
        "|[nearly|almost|over] a [week|month]"
    ),
    "money": "<num> [euros|pounds|dollars]",
    "num": "15|19|24|35|40|49|60|75|89|110|129|150|240|310",
    "num4": "4471|2093|8850|1176|5307|9612|3348|7025",
    "you": "you|your team|your people|the shop|your company",
    "staff": (
        "<agent>|<agent> from your team|your colleague|the man on the phone|the woman in the chat"
        "|your chat bot|someone on your side|the person at the desk|your technician|your last email"
    ),
    "please": "please|kindly|could you|would you mind if I asked you to",
    "hedge": "honestly|frankly|to be fair|I have to say|I must admit|by the way|for the record|well|so|look",
    # -- facts that say nothing about the label
    "ctx": (
        "<it> [was|came as] a [birthday|wedding|Christmas] present from <member>|<it> is for <member>"
        "|I'm writing about <it>|this is about [order <num4>|the order from <when>|<it>]"
        "|I have had <it> for <dur>|we use <it> every day|we use <it> at the office|I wrote to you <when>"
        "|<staff> told me to write here|I've been a customer for [years|ages|ten years]"
        "|same address as last time|<member> set <it> up for me|my order number is <num4>"
        "|ticket <num4>, about <it>|it's me again about <it>|I talked to <staff> <when>"
    ),
    "ctx@thing": (
        "I [bought|ordered|got] <it> <when>|<it> is my second one from you|<it> cost me <money>"
        "|I paid <money> for <it>|<it> arrived <when>|the parcel with <it> came <when>"
        "|<it> has moved house with me|<it> replaces an old one from another maker"
    ),
    "ctx@service": "I signed up for <it> <when>|<it> renews <when2>|I pay <money> a month for <it>",
    "when2": "next [week|month]|on <day>|tomorrow|at the end of the month",
    # -- states of the product, in every class
    "bad": (
        "<it> <fault3>|<it> [constantly|still|always|suddenly] <fault3>|<it> has started to <fault>"
        "|since [the update|<day>|<when>] <it> <fault3>|out of the blue <it> <fault3>"
        "|<it> would <fault> from day one|every time I use <it>, it <fault3>"
        "|<it> [was fine|behaved] for <dur>, now it <fault3>|for <dur> now <it> <fault3>"
        "|the <part> of <it> is [broken|faulty|no good|playing up|useless]|<it> no longer <work3>"
        "|<it> never <workd>|the <part> broke <when>|<it> <faultd> again [today|last night|this morning]"
        "|I [thought|hoped] <it> would <work>, instead it <fault3>|all <it> does is <fault>"
    ),
    "good": (
        "<it> <work3>|<it> <work3> [beautifully|as promised|every time|like new|without fail]"
        "|nothing is wrong with <it>|I have no complaints about <it>"
        "|<it> is [great|lovely|fine|solid|well made|as described]|<it> <work3>, no doubt about it"
        "|so far <it> <work3>|I quite like <it>|the <part> is [great|better than I expected]"
        "|<it> does its job|<it> hasn't let me down"
    ),
    "wasbad": (
        "<it> used to <fault>|<it> <faultd> [for <dur>|a lot|at first|last week]|at first <it> <faultd>"
        "|back in [May|spring|March] <it> <faultd>|when I wrote <when>, <it> still <faultd>"
        "|I complained <when> that <it> <faultd>|<it> <faultd> once or twice"
    ),
    "wasgood": (
        "<it> <workd> for <dur>|until [yesterday|<day>|the update] <it> <workd>|<it> used to <work>"
        "|in the first weeks <it> <workd>|I was [happy|delighted|very pleased] with <it> until <when3>"
    ),
    "when3": "yesterday|last week|the update|Monday|the summer",
    "mild": (
        "<it> does <fault> now and then|once in a while <it> <fault3>"
        "|<it> [sometimes|occasionally] <fault3>|<it> may <fault> [once or twice a month|every so often]"
    ),
    "mood": (
        "I'm [a bit|rather|really|very] [tired|disappointed|annoyed|surprised|confused]|what an experience"
        "|I expected [more|less]|I'm not angry|I'm sorry to bother you|this is no fun"
        "|it has been a long week|I've been patient|no hard feelings"
    ),
    # -- what may be wanted, as a noun, and as an order to the company
    "refund.np": (
        "a [full |]refund|my money back|the money|what I paid|my <money>"
        "|the [whole |]amount back on my card|the price back|a cancellation"
    ),
    "refund.np@thing": "a return of the <n> for its full price|a return label and my money",
    "refund.np@service": "an early way out of the contract|an end to the <n> and its charges",
    "refund.do": (
        "refund [me|the <n>]|give me [my money|the <money>] back|pay me back"
        "|[reverse|undo] the [payment|charge]|put the money back on my card"
        "|cancel [it|the order|everything] and return the money|transfer the <money> back"
        "|return what I paid|credit my card|undo the purchase"
    ),
    "refund.do@thing": (
        "take the <n> back|take the <n> off my hands for what I paid|collect the <n> and repay me"
        "|accept it as a return"
    ),
    "refund.do@service": (
        "end my contract|cancel the <n>|close my account and pay out the rest|let me out of the <n>"
        "|stop charging me and repay last month"
    ),
    "repair.np": (
        "a repair|a [proper |lasting |]fix|somebody who looks at it|a new <part>|a working <n>"
        "|one that works|help with the fault|a solution for the fault"
    ),
    "repair.np@thing": (
        "a replacement|a technician|an exchange|a spare <part>|an identical one without the fault"
    ),
    "repair.do": (
        "fix [it|the <part>|the <n>]|get it [going|working|running] again"
        "|sort out the [fault|problem|<part>]|make it <work>|have somebody look at [it|the <part>]"
        "|look into the fault|put the <part> right|get rid of the fault|help me get it running"
    ),
    "repair.do@thing": (
        "repair [it|the <part>|the <n>]|replace [it|the <part>|the <n>]"
        "|send [a technician|a new <part>|another <n>|one that works]|swap it for one that works"
    ),
    "repair.do@service": "reset it on your side|send an engineer|have your engineers restore it",
    "question.np": (
        "[an|a short|a straight] answer|[some|a bit of] [advice|information]|the instructions|a quick tip"
        "|word on how to <howto>|an explanation of how it works|the manual|a tip on how to <howto>"
        "|[a yes or no|word] on whether it <fact3>"
    ),
    "question.do": (
        "tell me how to <howto>|explain how to <howto>|tell me [if|whether] it <fact3>"
        "|let me know [if|whether] it <fact3>|send me the [manual|instructions]"
        "|point me to the page that says how to <howto>|describe how to <howto>|say whether it <fact3>"
        "|show me how to <howto>|answer what I asked <when>"
    ),
    "nothing.np": (
        "nothing[ more| at all|]|no action[ at all|]|a closed ticket|things as they are|a quiet life"
        "|a simple thank you to <agent>|the present state of things"
    ),
    "nothing.do": (
        "leave [everything|it|things] as [it is|they are]|close [the|my] ticket"
        "|ignore my [last|earlier] [message|email]|forget my complaint|drop the matter"
        "|just pass my thanks on to <agent>|take this as a compliment|disregard the form I sent"
        "|let the matter rest|take no action"
    ),
    # -- plain statements of the wish
    "refund.core": (
        "please <refund.do>|[could|can|would|will] you <refund.do>?"
        "|[I want|I would like|I'd like|I ask for|I'm asking for|I expect] <refund.np>"
        "|I want you to <refund.do>|[when|how soon] will you <refund.do>?"
        "|only <refund.np> will [do|settle this] now|I'd be happier with my <money> than with the <n>"
        "|my bank details are below, you know why|keep the <n>, I'll keep my <money>"
        "|the <n> and I are parting ways, so please settle up"
        "|I have no use for it any more and want what it cost"
        "|it's not what I ordered and I won't be paying for it"
        "|I never agreed to that charge, so send it back where it came from"
        "|the <money> should be on my account again by <day>"
        "|you still [owe|have not sent] me the <money> for the <n>"
        "|I regret buying it, and the law gives me fourteen days"
        "|I changed my mind within the trial period, so let me out|where is the <money> you promised me?"
        "|I've waited <dur> for my <money>, please hurry"
        "|count me out, and the <money> goes back to my card please"
        "|found it elsewhere for half, so I'm backing out|please make it as if I had never ordered"
        "|[it turns out|<member> says] we already own one, so this order needs undoing"
    ),
    "refund.core@thing": (
        "where do I send the <n> so that I get repaid?|it's packed up and ready to go back to you"
        "|a courier can pick the <n> up tomorrow, then I expect the <money>"
        "|please send a return label, I'm not keeping it|it's going back"
        "|I'm sending it back <when2>, same card please"
        "|it's too [big|small|heavy|loud] for me, so back it goes"
    ),
    "refund.core@service": (
        "please don't renew it and return this month's fee"
        "|this was to be my last month, so why was I charged? undo it please"
        "|I moved abroad, so end it and repay the rest"
        "|I pulled the plug on <day>, yet you took <money>, I'd like that back|I want out"
    ),
    "repair.core": (
        "please <repair.do>|[could|can|would|will] you <repair.do>?"
        "|[I need|I want|I would like|I'd like] <repair.np>|I need you to <repair.do>"
        "|[when|how soon] can you <repair.do>?|I just need it to <work>|all I ask is that it should <work>"
        "|it has to <work> by <day>|it would be great if it could <work> again|please help, it <fault3>"
        "|somebody has to do something about the <part>|I can't work like this, it <fault3>"
        "|I rely on it daily, so the sooner it <work3> the better"
        "|restarting didn't help, it <fault3> all the same, what's next?"
        "|your fix lasted <dur>, then it <faultd> again, so please try once more"
        "|the new <part> never came and I still need it"
        "|<agent> promised that it would <work> by now, it doesn't"
        "|I'd love to keep it, it only needs to <work>|what are you doing about the fact that it <fault3>?"
        "|surely a <n> can be made to <work>|it should not <fault>, and I count on you to change that"
        "|when can I expect it to <work>?"
    ),
    "repair.core@thing": (
        "it's under warranty, so where can I bring it in?|could a technician come by on <day>?"
        "|I'm home all <day> if you want to send somebody|the warranty should cover a new <part>"
        "|I'll gladly swap the <n> for one that doesn't <fault>"
        "|the spare <part> you sent doesn't fit, I need the right one"
    ),
    "repair.core@service": (
        "please restart it on your end|something on your servers needs mending"
        "|please restore it before <day>|my line needs somebody to look at it"
    ),
    "question.core": (
        "how [do|can|would] I <howto>?|is there a way to <howto>?|does it <fact>?"
        "|can [I|you] tell [me |][how to <howto>|if it <fact3>]?"
        "|what's the [best|easiest|right] way to <howto>?|[could|can|would|will] you <question.do>?"
        "|please <question.do>|[I want|I would like|I'd like] <question.np>"
        "|[I wonder|I was wondering|I'm curious] [whether|if] it <fact3>|I can't find where to <howto>"
        "|the manual doesn't say how to <howto>|do I need [an app|a tool|an account] to <howto>?"
        "|am I right that it <fact3>?|do you know if it <fact3>?"
        "|is it normal that [the <part> feels loose|it <fault3> on the first day]?"
        "|where is it written how to <howto>?|<member> asks [whether|if] it <fact3>"
        "|what happens to my data when I <howto>?|how often should one <howto>?"
        "|which model would you pick if it has to <work>?|what does the light on the <part> mean?"
        "|how long do I have to decide [about returns|whether to keep it]?"
        "|until when could one cancel, in theory?|who pays the postage for returns?"
        "|how long does the warranty on the <part> last?|what would a repair cost, roughly?"
        "|how many days does a refund usually take?|does the warranty cover the <part>?"
        "|is the <part> the same as on last year's model?|what's the difference to the cheaper <n>?"
        "|before I order another, does it <fact>?|should it <fault> like that?|when do you open on <day>?"
        "|where can I read your terms on returns and repairs?"
    ),
    "nothing.core": (
        "just wanted to say thanks|thanks to <agent>, who was [so |very |]kind|all [is |]sorted[ now|]"
        "|no need to reply|that's all, [keep it up|have a nice day]|please <nothing.do>"
        "|you can <nothing.do>|I [want|need] nothing|<agent> deserves a raise|consider it settled"
        "|problem gone, [case closed|all good]|five stars from me|I'll happily recommend you"
        "|it's fine the way it is|I can live with that|I'm keeping it as it is|my compliments to <agent>"
        "|[restarting|a good night's rest|a little patience] did the trick|false alarm, sorry"
        "|I found the answer myself|the money arrived, so we're even"
        "|your refund reached me <when>, thank you|the technician came <when> and it <work3>"
        "|<agent> showed me how to <howto>, brilliant|I figured out how to <howto>"
        "|I thought I'd want my money back, but no, it stays|it turned out to be my own fault, never mind"
        "|it <work3> and that's all I wanted to tell you|not a complaint, just feedback"
        "|for your information only|I'd buy it again|I only wanted you to know that it <work3>"
        "|you may quote me on your site|I couldn't be happier"
    ),
    "nothing.core@thing": (
        "well done to whoever packed it|the replacement arrived and it <work3>|the new <part> fits, thanks"
    ),
    # -- what is mentioned but not wanted
    "refund.no": (
        "I'm not [asking for|after] [my money back|a refund]|no refund needed"
        "|a refund is [no use|of no use] to me|keep the money|my money can stay where it is"
        "|I don't want to [return it|cancel|back out]|this isn't about money"
        "|<member> got <refund.np> for [the same|a similar] thing|I was going to ask for <refund.np>"
        "|<staff> [brought up|suggested|mentioned] a refund|I turned down the refund"
        "|I thought about asking for <refund.np>"
        "|the refund for the other order [came through|arrived], by the way|<staff> offered to <refund.do>"
        "|I could have [cancelled|asked for my money] long ago|some people would demand their money back"
    ),
    "repair.no": (
        "nothing is broken|[there's |]no need to send anyone"
        "|the repair [last month|in May|<when>] went well|I've had it repaired [twice|before]"
        "|it isn't a fault|<member> [already |]fixed the <part>|a technician was here <when>"
        "|I don't need a [new one|repair|new <part>]|<staff> offered to <repair.do>"
        "|the <part> was replaced <when>|no more repairs|I know you could <repair.do>"
        "|<staff> mentioned <repair.np>|it's not that it <fault3>"
    ),
    "repair.no@thing": "please no technician|the replacement is still in its box|I don't want another <n>",
    "question.no": (
        "I know how to <howto>|I've read the manual|I'm not asking how to <howto>"
        "|don't send me the instructions[ again|]|my question about how to <howto> was answered"
        "|I did find out whether it <fact3>|<staff> explained how to <howto>|I don't need advice"
        "|no questions about how to <howto>|yes, I know it <fact3>|<staff> told me whether it <fact3>"
        "|I wondered if it <fact3>, but that's not why I write"
    ),
    "nothing.no": (
        "[thanks|thank you] for [the quick reply|your patience|getting back to me]|normally I love it"
        "|I [really |]do like the <n>|<agent> was [very |so |]kind|your service has always been great"
        "|I wrote that all was well, which was too early|I wish I could [say|write] that all is well"
        "|I'd love to leave it at that, but I can't|everyone else gives it five stars"
        "|please don't close my ticket|I recommended you to <member>|I didn't want to complain"
        "|<staff> thinks it's settled, it isn't|it would be easier to do nothing"
        "|I've praised you [often|everywhere]"
    ),
    # -- one wish against another; X is wanted, Y is not
    "frame": (
        "[I'd|I would] rather have you <X.do> than <Y.do>|please don't <Y.do>, <X.do>"
        "|please <X.do>, don't <Y.do>|you don't have to <Y.do>, just <X.do>"
        "|<staff> wanted to <Y.do>, but I'd like you to <X.do>"
        "|<staff> offered to <Y.do>; please <X.do> instead"
        "|<staff> refused to <X.do> and said you'd <Y.do>, I insist on the first"
        "|I first asked you to <Y.do>, now I'd [prefer|like] you to <X.do>"
        "|I asked you to <X.do>, why does everyone want to <Y.do> instead?"
        "|you were going to <Y.do>, please <X.do> after all|scrap my request to <Y.do>: <X.do>"
        "|the form says <Y.do>, it should say <X.do>|instead of offering to <Y.do>, <X.do>"
        "|I ticked by mistake that you should <Y.do>, I meant that you should <X.do>"
        "|nobody needs to <Y.do> if you [simply |just |]<X.do>|it's too late to <Y.do>, so <X.do>"
        "|[once|a month ago] I'd have begged you to <Y.do>, today I'd say <X.do>"
        "|you needn't <Y.do> as long as you <X.do>|my request is still that you <X.do>, not that you <Y.do>"
        "|<X.do>, and I promise I won't ask you to <Y.do>"
        "|<member> would have you <Y.do>, I'm content if you <X.do>|not <Y.np>, <X.np> is what I'm after"
        "|<Y.np> won't help me, <X.np> will|you keep offering <Y.np>, I asked for <X.np>"
        "|I was promised <X.np> and got an offer of <Y.np>, please stick to the promise"
        "|<X.np> is worth more to me than <Y.np>|others may want <Y.np>, I want <X.np>"
        "|forget what I said about wanting <Y.np>, <X.np> is enough|I want <X.np>, not <Y.np>"
        "|less talk of <Y.np>, more of <X.np>, that's my wish"
    ),
    # -- around the message
    "hello": (
        "hi|hello|hi there|hello again|good morning|good evening|dear team|hey|hi all|dear support"
        "|hi <agent>|dear <agent>"
    ),
    "bye": (
        "thanks|thank you|cheers|regards, <agent>|best, <agent>|thanks in advance|many thanks|kind regards"
        "|all the best|thanks for reading|yours, <agent>|have a good day"
    ),
    "link": "but|and|still,|anyway,|that said,|even so,|in any case,|also,|plus",
}

STATES: dict[str, str] = {
    "refund": "bad bad bad good wasbad wasgood mild mood mood",
    "repair": "bad bad bad bad bad good wasgood wasgood mild",
    "question": "bad good good good wasbad wasgood mild mild mood",
    "nothing": "bad good good good wasbad wasbad wasbad mild mild mood",
}
"""How likely each state is in each class: a hint, but all in all of them, so that none gives the label away."""

PLANS = (
    ("core",) * 4
    + ("state core",) * 4
    + ("ctx core",) * 3
    + ("core state", "ctx state core", "core ctx")
    + ("no core", "no core", "core no", "state no core", "ctx no core")
    + ("frame", "frame", "state frame", "ctx frame", "no frame")
)
"""Orders of the parts of a message, as likely as they are often here."""

Row = dict[str, str]
Node = tuple[str, tuple["Node", ...]] | str
_TOKEN = re.compile(r"[\[\]|]|<[^>]+>|[^\[\]|<]+")
_VERB = re.compile(r"^([^/ ]+)/([^/ ]+)/([^/ ]+)(.*)$")


def parse(source: str) -> Node:
    """The tree of a rule: ("|", alternatives), ("+", sequence), ("<", (name,)) or literal text."""
    tokens = _TOKEN.findall(source)
    position = 0

    def alternatives() -> Node:
        nonlocal position
        options: list[Node] = []
        sequence: list[Node] = []
        while position < len(tokens) and tokens[position] != "]":
            token = tokens[position]
            position += 1
            if token == "|":
                options.append(("+", tuple(sequence)))
                sequence = []
            elif token == "[":
                sequence.append(alternatives())
                position += 1
            elif token.startswith("<"):
                sequence.append(("<", (token[1:-1],)))
            else:
                sequence.append(token)
        return ("|", (*options, ("+", tuple(sequence))))

    return alternatives()


@cache
def rule(name: str, kind: str) -> Node:
    """The tree of a rule for a kind of product, its own alternatives added to the common ones."""
    extra = GRAMMAR.get(f"{name}@{kind}")
    return parse(GRAMMAR[name] if extra is None else GRAMMAR[name] + "|" + extra)


@cache
def products() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(kind, fields) of every product; services are as likely as they are few."""
    listed = []
    for kind, table in (("thing", THINGS), ("service", SERVICES)):
        entries = re.sub(r"([|;])\n +", r"\1", table).strip().splitlines()
        listed += [(kind, tuple(entry.split("|"))) for entry in entries]
    return tuple(listed)


def forms(verb: str) -> tuple[str, str, str]:
    """Infinitive, third person and past of "jam/jams/jammed on every page"."""
    match = _VERB.match(verb)
    assert match is not None, verb
    return match[1] + match[4], match[2] + match[4], match[3] + match[4]


class Message:
    """One message in the making: the product that it is about, and whether that was named already."""

    def __init__(self, label: str, rng: random.Random) -> None:
        self.rng = rng
        self.kind, (self.noun, part, faults, works, howtos, facts) = rng.choice(products())
        self.named = False
        self.words = {"n": self.noun, "part": part, "howto": rng.choice(howtos.split(";"))}
        for name, verbs in (("fault", faults), ("work", works), ("fact", facts)):
            plain, third, past = forms(rng.choice(verbs.split(";")))
            self.words |= {name: plain, f"{name}3": third, f"{name}d": past}
        self.wanted = label
        self.refused = rng.choice([other for other in LABELS if other != label])

    def expand(self, node: Node) -> str:
        if isinstance(node, str):
            return node
        operator, children = node
        if operator == "|":
            return self.expand(self.rng.choice(children))
        if operator == "+":
            return "".join([self.expand(child) for child in children])
        (name,) = children
        assert isinstance(name, str)
        return self.slot(name)

    def slot(self, name: str) -> str:
        if name in self.words:
            if name == "n":
                self.named = True
            return self.words[name]
        if name == "it":
            if self.named and self.rng.random() < 0.85:
                return "it"
            determiner = "the" if self.named else self.rng.choice(("the", "my", "the", "my", "your", "this"))
            self.named = True
            return f"{determiner} {self.noun}"
        if name.startswith(("X.", "Y.")):
            name = (self.wanted if name[0] == "X" else self.refused) + name[1:]
        return self.expand(rule(name, self.kind))

    def part(self, name: str) -> str:
        """A sentence of the plan, without its full stop."""
        if name == "state":
            name = self.rng.choice(STATES[self.wanted].split())
        elif name == "core":
            name = f"{self.wanted}.core"
        elif name == "no":
            name = f"{self.refused}.no"
            self.refused = self.rng.choice([other for other in LABELS if other not in (self.wanted, self.refused)])
        return self.slot(name)


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def compose(label: str, rng: random.Random) -> str:
    """A message of a class, of any length."""
    message = Message(label, rng)
    plan = rng.choice(PLANS).split()
    hello = message.slot("hello") if rng.random() < 0.15 else ""
    sentences = [message.part(name) for name in plan]
    if rng.random() < 0.12:
        sentences[0] = f"{message.slot('hedge')}, {sentences[0]}"
    text = sentences[0]
    for sentence in sentences[1:]:
        ended = text[-1] in "?!"
        how = rng.random()
        if how < 0.5 or ended:
            text += (" " if ended else ". ") + capitalised(sentence)
        elif how < 0.68:
            text += ", " + sentence
        elif how < 0.78:
            text += " - " + sentence
        elif how < 0.84:
            text += "; " + sentence
        elif how < 0.93:
            text += ", " + message.slot("link") + " " + sentence
        else:
            text += ". " + capitalised(message.slot("link")) + " " + sentence
    if not message.named and rng.random() < 0.25:
        subjects = (f"About the {message.noun}", f"My {message.noun}", f"Order {message.slot('num4')}")
        text = f"{rng.choice(subjects)}: {text}"
    if hello:
        text = f"{hello}, {text}"
    text = capitalised(text)
    if text[-1] not in "?!":
        text += rng.choice((".", ".", ".", ".", "!", ""))
    if rng.random() < 0.14:
        text += ("" if text[-1] in ".?!" else ".") + " " + capitalised(message.slot("bye")) + rng.choice((".", "", "!"))
    if rng.random() < 0.2:
        text = text.lower() if rng.random() < 0.5 else text.lower().rstrip(".")
    return text


def messages(seed: int) -> Iterator[tuple[str, str]]:
    """Endless distinct-looking (text, label) pairs, classes in turn; lengths within bounds, duplicates possible."""
    rng = random.Random(seed)
    while True:
        for label in LABELS:
            text = compose(label, rng)
            while not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                text = compose(label, rng)
            yield text, label


def splits(train_rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS) -> tuple[list[Row], list[Row]]:
    """The rows of train and test, without a duplicate in either or across, in random order."""
    seen: set[str] = set()
    rows: list[Row] = []
    for text, label in messages(SEED):
        if (key := normalized(text)) in seen:
            continue
        seen.add(key)
        rows.append({"text": text, "label": label})
        if len(rows) == train_rows + test_rows:
            break
    random.Random(SEED + 1).shuffle(rows)
    return rows[test_rows:], rows[:test_rows]


def jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder for train.jsonl and test.jsonl")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), splits(), strict=True):
        (out / f"{name}.jsonl").write_text(jsonl(rows), encoding="utf-8", newline="\n")
        print(f"{out / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
